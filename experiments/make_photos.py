"""Sort 187 photos of a Debian package into seven classes: `python experiments/make_photos.py datasets/photos`.

They are those of tuxpaint-stamps-default (apt install; GPL-2), cut out on a transparent ground, 9 to 64 of a class; its
drawings are left out.
"""

import shutil
import sys
from pathlib import Path

STAMPS = Path("/usr/share/tuxpaint/stamps")
CLASSES = "animals/birds animals/fish animals/insects animals/mammals plants/flowers food/fruit food/vegetables"
DRAWN = {"cartoon", "plastic", "toys"}


def main(folder: Path) -> None:
    """Copy the photos to FOLDER/CLASS."""
    for place in CLASSES.split():
        target = folder / Path(place).name
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted((STAMPS / place).rglob("*.png")):
            if not DRAWN.intersection(path.parts):
                shutil.copy(path, target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
