from collections.abc import Sequence

from imgcls.errors import UserError
from imgcls.finetune.base import FineTune
from imgcls.models.base import Stage


class LinearProbe(FineTune):
    """The backbone is frozen, its BatchNorm statistics included; only the linear head is trained.

    Args:
        cache: Run the backbone once over the images and train the head on its features. The head then sees each
            image as it is, or one of `views` augmented versions, in place of a new one in each epoch.
        views: Number of augmented versions of each training image in the cache, beside the plain one.
        feature_dir: Folder of cached features that several runs share; the run's own by default. Features are
            found again by data, weights, preprocessing and augmentation.
    """

    def __init__(self, cache: bool = False, views: int = 0, feature_dir: str | None = None) -> None:
        super().__init__()
        if views and not cache:
            raise UserError("--model.finetune.views: counts versions in the cache; add --model.finetune.cache=true")
        self.views = views if cache else None
        self.feature_dir = feature_dir

    def scales(self, stages: Sequence[Stage]) -> list[float | None]:  # noqa: D102
        return [None] * len(stages)
