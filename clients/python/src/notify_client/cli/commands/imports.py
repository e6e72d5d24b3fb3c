"""`notify import`."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from notify_client.cli.connection import connect_async
from notify_client.cli.exit_codes import CommandFailed, ExitCode, code_for, describe
from notify_client.cli.importing.deliveries import Deliveries, follow
from notify_client.cli.importing.display import Display
from notify_client.cli.importing.outcomes import OutcomeFile, Progress, accepted_ids, read_progress
from notify_client.cli.importing.rows import CsvFile, Row, open_csv
from notify_client.cli.importing.run import ImportRun, key_function
from notify_client.cli.options import AsJson, ProfileName
from notify_client.cli.output import console, note, print_json

MAX_RETRIES = 8  # of one request: an import should survive a restart of the gateway


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("import")(import_)


@dataclass(frozen=True)
class Options:
    """The arguments of an import."""

    file: CsvFile
    outcome_file: Path
    run_name: str
    concurrency: int
    wait: bool
    timeout: float
    allow_duplicates: bool
    as_json: bool
    profile: str | None


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A CSV file in UTF-8.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the notifications, and print a table at the end.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=0, help="With --wait: stop following after this time."),
    ] = 600,
    concurrency: Annotated[
        int, typer.Option("--concurrency", metavar="NUMBER", min=1, max=100, help="Requests at a time.")
    ] = 20,
    run: Annotated[
        str, typer.Option("--run", metavar="NAME", help="Send the same file again: each name is an import of its own.")
    ] = "",
    ignore: Annotated[list[str] | None, typer.Option("--ignore", metavar="COLUMN", help="Ignore this column.")] = None,
    outcome_file: Annotated[
        Path | None,
        typer.Option(
            "--outcome-file", metavar="FILE", help="Instead of FILE.outcome.csv, or FILE.NAME.outcome.csv with --run."
        ),
    ] = None,
    allow_duplicates: Annotated[
        bool, typer.Option("--allow-duplicates", help="Continue an import that was interrupted more than 23 hours ago.")
    ] = False,
    as_json: AsJson = False,
    profile: ProfileName = None,
) -> None:
    """Send a notification for each row of a CSV file; run it again to continue after an interruption.

    The columns are user_id, channels and message, and optionally subject,
    reference, send_at, expires_at, metadata.NAME, and one for the recipient on
    each channel: telegram, email and webhook. Separate several channels with
    spaces or semicolons.

    Example: notify import customers.csv --wait

    The outcome of each row is appended to FILE.outcome.csv. Running the same
    command again sends only the rows that have not been accepted. Exits with 1
    if a row was not accepted, or with --wait if a notification is not final in
    the end; notify failures lists the failed deliveries.
    """
    content = open_csv(file, frozenset(ignore or ()))
    name = f"{file.name}.{run}" if run else file.name
    path = outcome_file or file.with_name(f"{name}.outcome.csv")
    options = Options(content, path, run, concurrency, wait, timeout, allow_duplicates, as_json, profile)
    raise typer.Exit(asyncio.run(_import(options)))


async def _import(options: Options) -> ExitCode:
    file = options.file
    async with connect_async(options.profile, MAX_RETRIES) as client:
        source = f"sha256:{file.digest} {client.config.base_url}"
        progress = read_progress(options.outcome_file)
        _check(options, progress, source)
        note(f"Sending {file.rows - len(progress.accepted)} rows from {file.path} to {client.config.base_url}")
        before = len(progress.accepted)
        display = Display(file.rows, following=options.wait)
        run = ImportRun(
            client, OutcomeFile(options.outcome_file, source), key_function(file.digest, options.run_name),
            lambda: display.show(before + run.accepted, 0),
        )  # fmt: skip
        try:
            with display:
                rows = (row for row in file.read() if row.line not in progress.accepted)
                deliveries = await _send_and_follow(options, run, rows, before, display)
        except asyncio.CancelledError:
            accepted = f"{before + run.accepted} of {file.rows} rows are accepted"
            raise CommandFailed(
                f"interrupted: {accepted}; run the same command again to continue", ExitCode.INTERRUPTED
            ) from None
    _report(options, before, run, deliveries)
    return _exit_code(run, deliveries)


async def _send_and_follow(
    options: Options, run: ImportRun, rows: Iterator[Row], before: int, display: Display
) -> Deliveries | None:
    try:
        await run.send_all(rows, options.concurrency)
    finally:
        run.outcomes.close()
    if not options.wait or run.stopped_by is not None:
        return None
    accepted = before + run.accepted
    return await follow(
        run.client, accepted_ids(options.outcome_file), options.concurrency, options.timeout,
        lambda final: display.show(accepted, final),
    )  # fmt: skip


def _check(options: Options, progress: Progress, source: str) -> None:
    path = options.outcome_file
    if progress.source is not None and progress.source != source:
        raise CommandFailed(
            f"{path} is about another content of the file or another gateway: put corrected rows into a new file, "
            "or move the outcome file away to send all rows", ExitCode.USAGE,
        )  # fmt: skip
    if progress.may_be_duplicated(options.file.rows, datetime.now(UTC)) and not options.allow_duplicates:
        raise CommandFailed(
            f"{path}: the import was interrupted so long ago that rows without an outcome may be sent twice; pass "
            "--allow-duplicates to continue", ExitCode.USAGE,
        )  # fmt: skip


def _report(options: Options, before: int, run: ImportRun, deliveries: Deliveries | None) -> None:
    for line, problem in sorted(run.rejected + run.unknown):
        say = note if options.as_json else console().print
        say(f"line {line}: {problem}")
    rows, accepted = options.file.rows, before + run.accepted
    if options.as_json:
        summary: dict[str, object] = {
            "file": str(options.file.path), "outcome_file": str(options.outcome_file), "rows": rows,
            "accepted": accepted, "accepted_before": before, "rejected": len(run.rejected),
            "unknown": len(run.unknown), "not_sent": rows - accepted - len(run.rejected) - len(run.unknown),
        }  # fmt: skip
        if deliveries is not None:
            summary |= {"final": deliveries.final, "open": deliveries.open, "deliveries": deliveries.counts()}
        print_json(summary)
        return
    output = console()
    done = f"{accepted} of {rows} rows are accepted"
    if deliveries is not None:
        output.print(deliveries.table())
        done = f"{deliveries.final} of {rows} notifications are final"
    output.print(
        done
        + (f" ({before} by earlier runs)" if before else "")
        + (f"; {len(run.rejected)} rows were rejected" if run.rejected else "")
        + (f"; {len(run.unknown)} are unknown" if run.unknown else "")
        + (f"; {deliveries.open} are still open" if deliveries is not None and deliveries.open else "")
        + "."
    )
    if accepted < rows:
        correct = " Put corrected rows into a new file, and import that." if run.rejected else ""
        again = " Run the same command again to send the rest." if rows - accepted - len(run.rejected) else ""
        note(f"The outcome of each row is in {options.outcome_file}.{correct}{again}")


def _exit_code(run: ImportRun, deliveries: Deliveries | None) -> ExitCode:
    if run.stopped_by is not None:
        note(f"notify: stopped: {describe(run.stopped_by)}")
        return code_for(run.stopped_by)
    failed = run.rejected or run.unknown or (deliveries is not None and deliveries.open)
    return ExitCode.FAILED if failed else ExitCode.OK
