from collections.abc import Sequence
from typing import Any

import numpy as np

from imgcls.data.base import ImageDataModule, Part
from imgcls.data.decode import EXTENSIONS
from imgcls.data.folder import list_images
from imgcls.data.sources import FileSource, Source
from imgcls.errors import UserError


class FilesData(ImageDataModule):
    """Images without labels, to predict: a file, or a folder with everything below it.

    Args:
        class_names: The classes that the model knows.
    """

    def __init__(self, class_names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_names = list(class_names)

    def open(self, part: Part) -> Source | None:  # noqa: D102
        if self.root is None or not self.root.exists():
            raise UserError(f"--data.root {self.root}: there is no such file or folder")
        folder, files = (self.root.parent, [self.root]) if self.root.is_file() else (self.root, list_images(self.root))
        if not files:
            raise UserError(f"--data.root {self.root}: holds no image ({', '.join(sorted(EXTENSIONS))})")
        return FileSource(folder, [p.relative_to(folder).as_posix() for p in files], np.full(len(files), -1))

    def setup(self, stage: str) -> None:
        """Open the files; there is no training part."""
        test = self._require(self.open("test"), "")
        self.parts = {"test": (test, np.arange(len(test)))}
        self._take_in("test")
