"""Work on all files of a plan: what fails is told and does not stop the others; results in the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from l2c.cli.messages import CONCEALED, FAILED, exit_code, message_of, say
from l2c.cli.plan import Job, Plan
from l2c.cli.progress import files_done
from l2c.cli.report import Result, print_json, total_line
from l2c.cli.terminal import STANDARD, printable, shown
from l2c.errors import DamagedError, ModelMismatchError, RateError

Outcome: TypeAlias = Result | Exception


def run(
    plan: Plan, work: Callable[[Iterable[Job]], Iterable[Outcome]], line: Callable[[Result], str], as_json: bool
) -> int:
    """Work on every file. Returns the exit code.

    Args:
        work: yields what came of each job, in their order, as early as it is known.
        line: of the report on a file that is done.
    Raises:
        KeyboardInterrupt: after what was done until then is told.
    """
    results: list[Result] = []
    codes = [FAILED] * sum(part.fails for part in plan.left_out)
    started, stopped, concealed = time.perf_counter(), False, False
    for part in plan.left_out:
        if part.fails:
            say("error", f"{part.path}: {part.reason}: left out")
    try:
        with files_done(len(plan.jobs), plan.is_folder) as advance:
            for job, outcome in zip(plan.jobs, work(plan.jobs)):
                if isinstance(outcome, Exception):
                    codes.append(exit_code(outcome))
                elif outcome.get("damaged_tiles") or outcome.get("damaged_sections"):
                    concealed = True
                results.append(_told(job, outcome))
                advance()
    except KeyboardInterrupt:
        if not plan.is_folder:
            raise
        stopped = True
    if as_json:
        print_json(results + list(_left_out(plan)) if plan.is_folder else results[0])
    else:
        # Standard output may be where the file went.
        out = sys.stderr if any(job.target == STANDARD for job in plan.jobs) else sys.stdout
        for result in results:
            if "error" not in result:
                print(printable(_line(result, line)), file=out)
        if plan.is_folder:
            print(printable(total_line(results, plan, time.perf_counter() - started, stopped)), file=out)
    if stopped:
        raise KeyboardInterrupt
    if codes:
        return FAILED if plan.is_folder else codes[0]
    return CONCEALED if concealed else 0


def _told(job: Job, outcome: Outcome) -> Result:
    """The result of one file; where it failed, the error in words, which is said."""
    result: Result = {"input": job.source} | ({"output": job.target} if job.target else {})
    if not isinstance(outcome, Exception):
        return result | outcome
    message = message_of(outcome, shown(job.source))
    say("error", message, outcome)
    result |= {"error": message, "error_type": type(outcome).__name__}
    if isinstance(outcome, RateError):
        result["least_bpp"] = outcome.least_bpp
    if isinstance(outcome, DamagedError):
        result |= {"damaged_tiles": list(outcome.tiles), "damaged_sections": list(outcome.sections)}
    if isinstance(outcome, ModelMismatchError):
        result["model_id"] = outcome.wanted
    return result


def _left_out(plan: Plan) -> Iterator[Result]:
    """What a folder's JSON says of files that are not worked on."""
    for part in plan.left_out:
        failed = {"error": f"{part.path}: {part.reason}", "error_type": "LeftOut"} if part.fails else {}
        yield {"input": part.path, "left_out": part.reason} | failed


def _line(result: Result, line: Callable[[Result], str]) -> str:
    places = shown(result["input"])
    if "output" in result:
        places += f" -> {shown(result['output'], '<stdout>')}"
    return f"{places}: {'is there already' if result.get('skipped') else line(result)}"
