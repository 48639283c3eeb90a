"""The JSON of `POST /predict`, in and out, and of its errors. Names and meaning are those of the REST contract."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.errors import ServiceError
from service.reader import Reader, Reading
from service.statistics import Stages

# Rounded for readers and for size: pixels to a thousandth, other numbers to a millionth.
_Pixels = Annotated[float, AfterValidator(lambda value: round(value, 3))]
_Real = Annotated[float, AfterValidator(lambda value: round(value, 6))]

_Coordinate = Annotated[float, Field(allow_inf_nan=False)]

# x, y, width, height in the pixels of the upright image.
Rectangle = tuple[_Coordinate, _Coordinate, _Coordinate, _Coordinate]


class ImageIn(BaseModel):
    """One image of a JSON request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    data: str = Field(description="The encoded image in base64, or as a base64 `data:` URI.")
    id: str | None = Field(
        None, max_length=256, description="Comes back with its predictions; its position by default."
    )
    regions: list[Rectangle] | None = Field(
        None,
        min_length=1,
        fail_fast=True,
        description="Regions to read, `[x, y, width, height]` in pixels of the upright image; by default the whole.",
    )


class PredictRequest(BaseModel):
    """The JSON way in."""

    model_config = ConfigDict(extra="forbid", strict=True)

    images: list[ImageIn] = Field(fail_fast=True)  # only the first mistake is told


class ModelInfo(BaseModel):
    """The artifact that answered and what it ran on."""

    name: str
    version: str
    sha256: str
    provider: str

    @classmethod
    def of(cls, reader: Reader) -> ModelInfo:
        engine = reader.engine
        return cls(
            name=engine.metadata.name,
            version=engine.metadata.version,
            sha256=engine.sha256,
            provider=engine.provider,
        )

    @property
    def identity(self) -> dict[str, str]:
        """What it is, wherever it runs."""
        return self.model_dump(exclude={"provider"})


class ImageInfo(BaseModel):
    """An image of the request."""

    index: int = Field(description="Position in the request, from 0.")
    width: int | None = Field(description="Of the upright image, in pixels; null where it could not be opened.")
    height: int | None


class DigitOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    digit: str
    confidence: _Real = Field(description="The probability that its slot gave it.")


class BoxOut(BaseModel):
    """What a spatial transformer looked at."""

    model_config = ConfigDict(from_attributes=True)

    transformer: int = Field(description="Which one, from 0.")
    corners: tuple[tuple[_Pixels, _Pixels], ...] = Field(
        description="Four corners (x, y) in pixels of the upright image, possibly outside it: clockwise from what the"
        " reader saw as the top-left, so that the box of a turned number is turned."
    )
    theta: tuple[tuple[_Real, _Real, _Real], ...] = Field(
        description="Two rows of three: the affine map from the transformer's output to its input, both normalised to"
        " [-1, 1] (x, y)."
    )


class ItemError(BaseModel):
    """Why one of several images has no reading."""

    code: str = Field(description="That of the problem which the image alone would have been answered with.")
    detail: str


class Prediction(BaseModel):
    """The answer for one image, or for one region where regions are given."""

    id: str = Field(description="That of the image; its position where it was given none.")
    image: ImageInfo
    region: Rectangle | None = Field(description="The region that was asked for; null is the whole image.")
    number: str | None = Field(description='The number; "" where no digit is seen, null where there is an error.')
    confidence: _Real | None = Field(description="Probability of the whole number, null where there is an error.")
    accepted: bool = Field(description="Whether a number was seen, with at least the confidence that is asked for.")
    digits: list[DigitOut] = Field(description="Those of the number, from left to right.")
    boxes: list[BoxOut] | None = Field(
        description="One per transformer. Left out with `boxes=false`.", exclude_if=lambda boxes: boxes is None
    )
    error: ItemError | None = Field(description="Null where there is a reading.")

    @classmethod
    def of(
        cls,
        answer: Reading | ServiceError,
        *,
        id: str,  # noqa: A002 - the contract's name
        image: ImageInfo,
        region: Rectangle | None,
        boxes: bool,
    ) -> Prediction:
        if isinstance(answer, ServiceError):
            return cls(
                id=id,
                image=image,
                region=region,
                number=None,
                confidence=None,
                accepted=False,
                digits=[],
                boxes=[] if boxes else None,
                error=ItemError(code=answer.code, detail=answer.detail),
            )
        return cls(
            id=id,
            image=image,
            region=region,
            number=answer.number,
            confidence=answer.confidence,
            accepted=answer.accepted,
            digits=answer.digits,  # read by their attributes, and so are the boxes
            boxes=answer.boxes if boxes else None,
            error=None,
        )


class Timing(BaseModel):
    """Milliseconds; with several images, those of the one that was answered last."""

    decode: float = Field(description="From bytes to pixels.")
    queue: float = Field(description="Waiting for a batch.")
    inference: float = Field(description="In the engine, the whole batch.")
    total: float = Field(description="Since the request came.")

    @classmethod
    def of(cls, stages: Stages, total_s: float) -> Timing:
        seconds = stages.decode_s, stages.queue_s, stages.inference_s, total_s
        decode, queue, inference, total = (round(value * 1000, 3) for value in seconds)
        return cls(decode=decode, queue=queue, inference=inference, total=total)


class Predictions(BaseModel):
    """Predictions in the order sent: what `housenumber predict --json` prints."""

    model: ModelInfo
    predictions: list[Prediction]


class PredictResponse(Predictions):
    """The answer of `POST /predict`."""

    timing_ms: Timing


class Problem(BaseModel):
    """An error, as `application/problem+json` (RFC 9457). `code` is stable and meant for programs."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
