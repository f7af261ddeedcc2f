import torch
from torch import Tensor
from torch.nn import functional as F

from imgcls.data.options import normalize, short
from imgcls.errors import UserError
from imgcls.runs.load import LoadedRun, load_run
from imgcls.tasks import SINGLE_LABEL, Task, find

SINGLE = find(SINGLE_LABEL)


class Teacher:
    """A trained run whose predictions are targets beside the labels (Hinton et al., Distilling the knowledge, 2015).

    Teacher and student see the same augmented images (Beyer et al., Knowledge distillation: a good teacher is patient
    and consistent, CVPR 2022), each normalised and sized as its own weights expect.

    Args:
        run: Folder of the teacher's run; its best checkpoint teaches.
        temperature: Softens both distributions; the loss is scaled by its square, as in section 2.1 of Hinton et al.
        weight: Share of the distillation loss; the loss on the labels has the rest.
    """

    def __init__(self, run: str | None = None, temperature: float = 4.0, weight: float = 0.9) -> None:
        if run is None:
            raise UserError("--model.teacher.run: give the folder of the teacher's run")
        if not (0 <= weight <= 1 and temperature > 0):
            raise UserError(f"--model.teacher: weight {weight} must lie in 0..1, temperature {temperature} above 0")
        self.run, self.temperature, self.weight = run, temperature, weight
        self.loaded: LoadedRun | None = None
        self.task = SINGLE

    def load(self, class_names: list[str], device: torch.device, task: Task = SINGLE) -> None:
        """Load the teacher of a student that learns these classes, from labels of that kind.

        Raises:
            UserError: It knows other classes, or labels of another kind.
        """
        self.loaded, self.task = load_run(self.run, device), task
        if (taught := self.loaded.model.task).link != task.link:
            kinds = f"learnt from labels of the kind {taught.name}, the data has {task.name}"
            raise UserError(f"--model.teacher.run {self.run}: {kinds}; give a run on labels of that kind")
        if self.loaded.class_names != class_names:
            known, given = short(self.loaded.class_names), short(class_names)
            raise UserError(f"--model.teacher.run {self.run}: knows the classes {known}, the data has {given}")

    @torch.no_grad()
    def logits(self, image: Tensor, mean: list[float], std: list[float]) -> Tensor:
        """The teacher's logits (B, K) for the student's images (B, C, H, W), normalised by `mean` and `std`."""
        teacher = self.loaded
        assert teacher is not None
        back = [-m / s for m, s in zip(mean, std, strict=True)], [1 / s for s in std]
        image, wanted = normalize(image.float(), *back), teacher.prepare
        if image.shape[1] != wanted.channels:
            if not {image.shape[1], wanted.channels} <= {1, 3}:
                channels = f"knows images of {wanted.channels} channels, the data has {image.shape[1]}"
                raise UserError(f"--model.teacher.run {self.run}: {channels}")
            image = image.expand(-1, 3, -1, -1) if wanted.channels == 3 else image.mean(1, keepdim=True)
        if image.shape[-1] != wanted.image_size:
            image = F.interpolate(image, size=(wanted.image_size,) * 2, mode="bilinear", antialias=True)
        return teacher.model(wanted.normalize(image))

    def combine(self, loss: Tensor, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The loss on the labels, a scalar, and that on the teacher's logits (B, K), weighed."""
        divergence = self.task.divergence(logits.float() / self.temperature, teacher_logits.float() / self.temperature)
        return (1 - self.weight) * loss + self.weight * self.temperature**2 * divergence
