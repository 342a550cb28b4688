"""`apq lut build|show|diff`: tables of layer costs."""

from __future__ import annotations

import argparse
from pathlib import Path

from apq.cli import parser as cli
from apq.cli.costs import load_table
from apq.cli.tables import format_table
from apq.errors import ApqError, closest

ACTIONS = {
    "build": ("image_size", "out"),
    "show": ("image_size", "filter", "limit"),
    "diff": ("limit",),
}
"""What each of them takes, of the flags that not all do."""
N_TABLES = {"build": (0,), "show": (0, 1), "diff": (1, 2)}
DEFAULT_SIZE, DEFAULT_SHOWN = 224, 20


def make_parser(prog: str) -> cli.Parser:
    """Return the command's parser."""
    parser = cli.Parser(
        prog=prog,
        description="Tables of layer costs.\n\n"
        "  build                compute a table for --image_size and keep it (or write --out)\n"
        "  show [TABLE]         summarise a table and the entries that --filter picks\n"
        "  diff TABLE [TABLE]   compare two tables, or one with the model's own",
    )
    parser.add_argument("action", type=cli.one_of(*ACTIONS), metavar="build|show|diff")
    parser.add_argument(
        "tables", nargs="*", type=Path, default=[], metavar="TABLE", help="table files"
    )
    parser.add_argument(
        "--image_size",
        type=cli.image_size,
        metavar="PX",
        help=f"of the table to build or, where no file is named, to show; default {DEFAULT_SIZE}",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write what is built")
    parser.add_argument("--filter", metavar="TEXT", help="show the entries whose key has this text")
    parser.add_argument(
        "--limit", type=cli.whole_number(1), help=f"entries shown; default {DEFAULT_SHOWN}"
    )
    cli.add_common(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run one of the three actions."""
    n_tables, takes = len(args.tables), N_TABLES[args.action]
    if n_tables not in takes:
        raise ApqError(
            f"'lut {args.action}' takes {' or '.join(map(str, takes))} table files; got {n_tables}"
        )
    for name in ("image_size", "out", "filter", "limit"):
        if getattr(args, name) is not None and name not in ACTIONS[args.action]:
            raise ApqError(f"--{name} has no effect on 'lut {args.action}'")
    if args.action == "show" and args.tables and args.image_size:
        raise ApqError(f"--image_size has no effect on a table from a file: {args.tables[0]}")
    args.image_size = args.image_size or DEFAULT_SIZE
    args.filter, args.limit = args.filter or "", args.limit or DEFAULT_SHOWN
    {"build": _build, "show": _show, "diff": _diff}[args.action](args)
    return 0


def _build(args: argparse.Namespace) -> None:
    from lut import table as lut_table

    out = args.out or lut_table.cache_dir() / f"bitfusion_{args.image_size}.json"
    table = lut_table.build_with_bar(args.image_size)
    lut_table.save(table, out)
    print(f"{len(table.layers):,} entries at {args.image_size} px: {out}")


def _show(args: argparse.Namespace) -> None:
    from lut import table as lut_table

    table = load_table(args.tables[0]) if args.tables else lut_table.for_image_size(args.image_size)
    keys = [key for key in table.layers if args.filter in key]
    if not keys:
        raise ApqError(
            f"no entry has '{args.filter}' in its key{closest(args.filter, table.layers)}"
        )
    parts = list(table.components["head"]) if table.components else []
    rows = []
    for key in keys[: args.limit]:
        entry, split = table.layers[key], (table.components or {}).get(key, {})
        figures = [f"{entry['latency']:.6f}", f"{entry['energy']:.6f}"]
        rows.append((key, *figures, *(f"{split[part]:.6f}" for part in parts)))
    a, machine = table.accelerator, "the accelerator is not told"
    if table.model_version is not None:
        machine = f"{a.array_rows} x {a.array_columns} fusion units at {a.frequency_mhz:g} MHz"
    print(f"{len(table.layers):,} entries at {table.image_size} px; {machine}")
    print(format_table(("layer", "ms", "mJ", *(p.replace("_", " ") for p in parts)), rows))
    if len(keys) > args.limit:
        print(f"... and {len(keys) - args.limit:,} more; see --filter and --limit")


def _diff(args: argparse.Namespace) -> None:
    from lut import table as lut_table

    first = lut_table.load(args.tables[0])
    if len(args.tables) == 2:
        second, name = lut_table.load(args.tables[1]), str(args.tables[1])
    else:
        second, name = lut_table.for_image_size(first.image_size), "the model's own"
    difference = lut_table.diff(first, second)
    print(f"{args.tables[0]} against {name}: {difference.n_common:,} entries in both")
    for which, keys in (("first", difference.only_in_a), ("second", difference.only_in_b)):
        if keys:
            shown = ", ".join(keys[: args.limit])
            print(f"only in the {which} ({len(keys):,}): {shown}")
    rows = [
        (d.quantity, f"{d.relative:.1e}", d.key, f"{d.a:.9g}", f"{d.b:.9g}")
        for d in difference.largest
    ]
    headers = ("quantity", "largest relative difference", "layer", "first", "second")
    print(format_table(headers, rows))
    print("they agree" if difference.agrees() else "they differ")
