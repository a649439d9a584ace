"""The command `l2c`: parses arguments, calls the codec, prints what happened.

Read first: results go to standard output (with `--json` one JSON object, or a list for a folder); errors, warnings and
progress go to standard error, one line each. What loads torch is named in `lazy` and loads when a command needs it.

    app                                       the commands together, and `main`
    encode, decode, verify                    work on files and folders
    bulk                                      `l2c bulk`: very many files, with a manifest; `parallel`: --jobs
    info, models, bench                       tell
    evaluate, train                           `l2c eval`, `l2c tables`, `l2c compare`; `l2c train STAGE`

    options                                   what several commands take
    plan -> batches -> session -> run         inputs and outputs -> files in batches -> the codec -> what came of each
    existing                                  what --skip-existing leaves alone
    report, progress, messages, terminal      what is printed, and how
"""

from l2c.cli.app import app, main

__all__ = ["app", "main"]
