"""`--jobs N`: a folder's files in several processes, with the engine of `l2c bulk`, told in their order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from l2c.bulk.batching import attempt
from l2c.cli import existing, lazy
from l2c.cli.messages import say
from l2c.cli.plan import Job, check_target
from l2c.cli.report import Result
from l2c.cli.run import Outcome
from l2c.errors import L2CWarning

if TYPE_CHECKING:
    from l2c.bulk.tasks import Item, Spec


def in_processes(
    spec: Spec, jobs: int, there: Callable[[Job], Result | None] | None, overwrite: bool
) -> Callable[[Iterable[Job]], Iterator[Outcome]]:
    """How `run` works on files in so many processes.

    Args:
        there: facts of an output that is to be left alone, or None; None: there is no such output.
    """

    def check(job: Job) -> Result | Item:
        facts = there(job) if there is not None else None
        if facts is not None:
            return facts
        replace = overwrite or (there is not None and existing.is_there(job.target))
        check_target(job, replace)
        if spec.command == "decode":
            lazy.images.check_output_format(spec.options["format"], Path(job.target))
        item: Item = lazy.bulk_tasks.Item(job.source, job.target, replace)
        return item

    def work(given: Iterable[Job]) -> Iterator[Outcome]:
        checked = [attempt(check, job) for job in given]
        items = {i: one for i, one in enumerate(checked) if not isinstance(one, (dict, Exception))}
        places = {item.source: i for i, item in items.items()}
        settings = lazy.bulk.Settings(jobs=min(jobs, max(1, len(items))))
        results = lazy.bulk_run.work_on(list(items.values()), spec, settings)
        known: dict[int, Outcome] = {i: one for i, one in enumerate(checked) if isinstance(one, (dict, Exception))}
        for i in range(len(checked)):
            while i not in known:
                result = next(results)
                for message in result.warnings:
                    warnings.warn(message, L2CWarning, stacklevel=1)
                if not isinstance(result.outcome, Exception) and result.outcome.get("target_reached") is False:
                    say("warning", f"{result.item.source}: {result.outcome['reason']}")
                known[places[result.item.source]] = result.outcome
            yield known.pop(i)

    return work
