"""Pictures of a page in three sizes and two modes: `python benchmarks/page_screenshots.py RUN --out FOLDER`."""

import argparse
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from assay import AssayError
from assay.faithfulness import Comparison
from assay.reports import Illustrations, write_page
from browser import browser

COLOURS = 128
"""Colours of a picture."""

SIZES = {"wide": (1280, 800), "tablet": (768, 1024), "phone": (390, 844)}


def main(arguments: list[str]) -> list[Path]:
    """Draw the page of a run, and write the first screen of it in every size and mode; returns the pictures' paths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder for NAME-SIZE-MODE.png")
    parser.add_argument("--name", default="page", help="what the pictures' names begin with (default: page)")
    parser.add_argument("--only", nargs="*", choices=SIZES, default=list(SIZES), help="sizes (default: all)")
    parser.add_argument("--mode", nargs="*", choices=("light", "dark"), default=["light", "dark"])
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    page = write_page(Comparison.load(given.run), given.run / "report.html", Illustrations.load(given.run))
    paths = []
    with browser() as shown:
        for size in given.only:
            for mode in given.mode:
                width, height = SIZES[size]
                shown.show(page, width=width, height=height, dark=mode == "dark")
                paths.append(given.out / f"{given.name}-{size}-{mode}.png")
                # A page has few colours: a palette of them makes the file a fraction of the size.
                picture = Image.open(BytesIO(shown.picture())).convert("RGB").quantize(COLOURS)
                picture.save(paths[-1], optimize=True)
                print(paths[-1])
    return paths


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (AssayError, FileNotFoundError) as error:
        sys.exit(str(error))
