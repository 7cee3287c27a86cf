"""The command ``pyckpt``: a thin layer over the API, for people and for scripts."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import pyckpt
from pyckpt.archive.convert import convert
from pyckpt.archive.extract import extract, extract_tensor, write_tensor
from pyckpt.archive.inspect import ArchiveInfo, MemberInfo, inspect
from pyckpt.archive.pack import pack
from pyckpt.archive.trial import measure
from pyckpt.archive.verify import Report, verify
from pyckpt.errors import CheckpointError, CorruptArchiveError
from pyckpt.sharded.archive_sets import add_set_problems
from pyckpt.storage.sweep import age_seconds, sweep
from pyckpt.terminal import printable

__all__ = ["main"]

_DAMAGED = 1
_FAILED = 2
_STOPPED = 130  # by Ctrl-C; shells use the same code
_UNREAD = 141  # nobody reads the output; shells report this code after SIGPIPE

_REPLACED = "later ones have their names"

_EPILOG = """\
exit codes:
  0    success
  1    a file is damaged or of the wrong kind
  2    any other error: wrong arguments, a missing file, a full disk
  130  stopped by Ctrl-C
  141  the program that reads the output has closed it

examples:
  pyckpt ls -t ckpts/ba000042-rank0.tar.gz
  pyckpt verify ckpts/*.tar.gz && echo all whole
  pyckpt cat-tensor ckpts/ba000042-rank0.tar.gz state/model/head.weight -o head.npy
  pyckpt extract ckpts/ba000042-rank0.tar.gz -C folder
  pyckpt convert ckpts/ba000042-rank0.tar.gz archive/ba000042-rank0.tar.lzma
  pyckpt save weights.pt weights.tar.bz2
  pyckpt bench --nbytes 200000000
  pyckpt sweep s3://bucket/run/ --older-than 36h
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.run is _extract and not any(word.startswith("-") for word in rest):
        options.members += rest  # what follows -C, as in tar's order
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Otherwise Python would write the rest again at exit, fail, and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _UNREAD
    except CorruptArchiveError as error:
        return _complain(error, _DAMAGED)
    except (CheckpointError, OSError) as error:
        return _complain(error, _FAILED)
    except KeyboardInterrupt:
        return _complain("stopped", _STOPPED)
    except Exception as error:  # otherwise Python would exit with 1, the code for a damaged file
        return _complain(f"{type(error).__name__}: {error}", _FAILED)
    return code


def _complain(error: object, code: int) -> int:
    _print(f"pyckpt: {error}", sys.stderr)
    return code


def _print(text: str, file: TextIO | None = None) -> None:
    file = file or sys.stdout
    for line in text.split("\n"):  # messages of torch have several lines
        print(printable(line, file.encoding), file=file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyckpt",
        description="Checkpoints as standard archives: look into them, check and change them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pyckpt {pyckpt.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        sub.set_defaults(run=run)
        sub.add_argument("--threads", type=int, help="default: all CPUs that it may use")
        return sub.add_argument

    add = command("save", _save, "pack a file of torch.save, or a folder, into an archive")
    add("source")
    add("archive", help="its suffix decides the format")
    add("--level", type=int, help="compression level of the format")

    add = command("ls", _ls, "list members, or tensors, without unpickling")
    add("archive")
    add("-t", "--tensors", action="store_true", help="key path, type, shape, bytes, bytes in file")
    add("--json", action="store_true")

    add = command("verify", _verify, "compare every checksum; name what is damaged or missing")
    add("archives", nargs="+")
    add("--json", action="store_true")

    add = command("extract", _extract, "write members as files, never overwrite files")
    add("archive")
    add("members", nargs="*", help="default: all")
    add("-C", "--folder", type=Path, default=Path())

    add = command("cat-tensor", _cat_tensor, "write one tensor: raw, or as .npy or .pt by suffix")
    add("archive")
    add("key", help="its key path, as ls -t prints it")
    add("-m", "--member", help="default: composer_states.pt")
    add("-o", "--out", type=Path, help="default: the standard output, raw")

    add = command("convert", _convert, "write an archive in another format, in bounded memory")
    add("source")
    add("archive", help="its suffix decides the format")
    add("--level", type=int, help="of the format; it compresses torch's own file (model.pt) too")

    add = command("bench", _bench, "time every format on this machine")
    add("--nbytes", type=int, default=100_000_000, help="of float32 noise (default: %(default)s)")
    add("--folder", type=Path, default=Path(), help="where to write (default: the current folder)")
    add("--json", action="store_true")

    add = command("sweep", _sweep, "abort uploads to a store that killed processes have left")
    add("prefix", help="what their URLs begin with: s3://bucket/run/")
    add("--older-than", default="1d", help="in s, m, h or d: longer than any save takes (1d)")
    add("-n", "--dry-run", action="store_true", help="only list them")
    return parser


def _bar() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _save(options: argparse.Namespace) -> int:
    pack(
        options.source,
        options.archive,
        compression_level=options.level,
        num_threads=options.threads,
        progress=_bar(),
    )
    return 0


def _ls(options: argparse.Namespace) -> int:
    info = inspect(options.archive, num_threads=options.threads)
    if options.json:
        _print(json.dumps(_as_json(info), indent=1))
        return 0
    for member in info.members:
        if options.tensors:
            _print_tensors(member)
        else:
            kind = "d" if member.is_directory else "l" if member.link else "-"
            name = printable(member.name)
            link = f" -> {printable(member.link)}" if member.link else ""
            _print(f"{kind} {member.nbytes:>16,} {len(member.tensors):>8,} tensors  {name}{link}")
    if info.replaced:
        _print(f"{len(info.replaced)} members are not listed: {_REPLACED}", sys.stderr)
    return 0


def _print_tensors(member: MemberInfo) -> None:
    for entry in member.tensors:
        tensor = entry.info
        code = "?" if entry.code_nbytes is None else f"{entry.code_nbytes:,}"
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        path = printable(entry.name)
        _print(f"{dtype:>10} {shape:>20} {tensor.nbytes:>15,} {code:>15}  {path}")


def _as_json(info: ArchiveInfo) -> dict[str, Any]:
    return {
        "path": str(info.path),
        "compression": info.compression,
        "file_nbytes": info.file_nbytes,
        "replaced": info.replaced,
        "members": [
            {
                "name": member.name,
                "is_directory": member.is_directory,
                "link": member.link,
                "nbytes": member.nbytes,
                "records": [
                    {"name": r.name, "nbytes": r.nbytes, "crc32": r.crc} for r in member.records
                ],
                "tensors": [
                    {
                        "name": entry.name,
                        "key_path": entry.info.key_path,
                        "dtype": str(entry.info.dtype).removeprefix("torch."),
                        "shape": list(entry.info.shape),
                        "nbytes": entry.info.nbytes,
                        "record": entry.record,
                        "code_nbytes": entry.code_nbytes,
                    }
                    for entry in member.tensors
                ],
            }
            for member in info.members
        ],
    }


def _verify(options: argparse.Namespace) -> int:
    reports = []
    code = 0
    for path in options.archives:
        try:
            report = verify(path, num_threads=options.threads, progress=_bar())
        except OSError as error:  # the other files are still checked
            code = _complain(error, _FAILED)
            continue
        reports.append(report)
        if not options.json:
            _print_report(report)
    for report, problem in add_set_problems(reports) if len(options.archives) > 1 else ():
        if not options.json:
            _print(f"{report.path}: {problem}")
    if options.json:
        _print(json.dumps([_report_as_json(report) for report in reports], indent=1))
    return code or (0 if all(report.ok for report in reports) else _DAMAGED)


def _print_report(report: Report) -> None:
    if report.ok:
        _print(
            f"{report.path}: whole ({report.members} members, {report.records} records, "
            f"{report.nbytes:,} bytes)"
        )
    for problem in report.problems:
        _print(f"{report.path}: {problem}")
    if report.replaced:
        _print(f"{report.path}: {len(report.replaced)} members do not count: {_REPLACED}")
    if report.unchecked:
        _print(
            f"{report.path}: {len(report.unchecked)} records or files have no checksum of their own"
        )


def _report_as_json(report: Report) -> dict[str, Any]:
    return {
        "path": str(report.path),
        "ok": report.ok,
        "compression": report.compression,
        "members": report.members,
        "records": report.records,
        "nbytes": report.nbytes,
        "unchecked": report.unchecked,
        "replaced": report.replaced,
        "problems": [
            {
                "message": problem.message,
                "member": problem.member,
                "record": problem.record,
                "tensors": [tensor.key_path for tensor in problem.tensors],
                "offset": problem.offset,
            }
            for problem in report.problems
        ],
    }


def _extract(options: argparse.Namespace) -> int:
    for path in extract(
        options.archive,
        options.folder,
        members=options.members or None,
        num_threads=options.threads,
    ):
        _print(printable(str(path)))
    return 0


def _cat_tensor(options: argparse.Namespace) -> int:
    tensor = extract_tensor(
        options.archive, options.key, member=options.member, num_threads=options.threads
    )
    write_tensor(tensor, options.out)
    return 0


def _convert(options: argparse.Namespace) -> int:
    convert(
        options.source,
        options.archive,
        compression_level=options.level,
        num_threads=options.threads,
        progress=_bar(),
    )
    return 0


def _bench(options: argparse.Namespace) -> int:
    results = measure(options.folder, options.nbytes, num_threads=options.threads)
    if options.json:
        _print(json.dumps(results, indent=1))
        return 0
    for name, result in results.items():
        _print(
            f"{name:12} save {result['save_seconds']:8.3f} s  load {result['load_seconds']:8.3f} s"
            f"  {result['file_nbytes'] / options.nbytes:7.1%} of {options.nbytes:,} bytes"
        )
    return 0


def _sweep(options: argparse.Namespace) -> int:
    age = age_seconds(options.older_than)
    for upload in sweep(options.prefix, older_than=age, dry_run=options.dry_run):
        began = datetime.fromtimestamp(upload.started).isoformat(sep=" ", timespec="seconds")
        _print(printable(f"{upload.url}, begun {began}"))
    return 0
