"""`POST /predict`, when all goes well."""

import base64

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import encode, plain
from tiny_reader import THRESHOLD, colour_of


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "content_type",
    ["image/png", "image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain", None],
)
def test_raw_bytes_decide_whatever_the_header_says(client: httpx.Client, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = client.post("/predict", content=plain("407"), headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json()["predictions"][0]["number"] == "407"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_format_is_read(client: httpx.Client, format: str) -> None:  # noqa: A002
    response = client.post("/predict", content=plain("19", format=format))
    assert response.json()["predictions"][0]["number"] == "19"


def test_the_answer_has_the_contracts_fields(client: httpx.Client) -> None:
    answer = client.post("/predict", content=plain("053", (20, 10))).json()
    assert set(answer) == {"model", "predictions", "timing_ms"}
    assert answer["model"]["name"] == "tiny"
    assert answer["model"]["version"] == "7"
    assert answer["model"]["provider"] == "CPUExecutionProvider"
    assert len(answer["model"]["sha256"]) == 64
    assert set(answer["timing_ms"]) == {"decode", "queue", "inference", "total"}
    assert answer["timing_ms"]["total"] >= answer["timing_ms"]["decode"] >= 0
    (prediction,) = answer["predictions"]
    assert prediction["id"] == "0"
    assert prediction["image"] == {"index": 0, "width": 20, "height": 10}
    assert prediction["region"] is None
    assert prediction["number"] == "053"
    assert prediction["accepted"] is True
    assert prediction["error"] is None
    assert [digit["digit"] for digit in prediction["digits"]] == ["0", "5", "3"]
    assert np.prod([digit["confidence"] for digit in prediction["digits"]]) == pytest.approx(
        prediction["confidence"], abs=1e-5
    )
    assert [box["transformer"] for box in prediction["boxes"]] == [0, 1]
    assert np.shape(prediction["boxes"][0]["corners"]) == (4, 2)
    assert np.shape(prediction["boxes"][0]["theta"]) == (2, 3)


def test_no_digit_is_an_empty_number_that_is_not_accepted(client: httpx.Client) -> None:
    prediction = client.post("/predict?min_confidence=0", content=plain("")).json()["predictions"][0]
    assert prediction["number"] == ""
    assert prediction["accepted"] is False
    assert prediction["digits"] == []
    assert prediction["error"] is None


def test_multipart_reads_every_part_in_order(client: httpx.Client) -> None:
    numbers = ["1", "22", "333", "4"]
    files = [("image", (f"{number}.png", plain(number), "image/png")) for number in numbers]
    predictions = client.post("/predict", files=files).json()["predictions"]
    assert [prediction["number"] for prediction in predictions] == numbers
    assert [prediction["id"] for prediction in predictions] == ["0", "1", "2", "3"]
    assert [prediction["image"]["index"] for prediction in predictions] == [0, 1, 2, 3]


def test_json_reads_base64_and_data_uris(client: httpx.Client) -> None:
    wrapped = base64.encodebytes(plain("2", (200, 100))).decode()
    images = [
        {"data": base64_of(plain("1")), "id": "first"},
        {"data": wrapped},
        {"data": "data:image/png;base64," + base64_of(plain("3")), "id": None, "regions": None},
        {"data": "DATA:;BASE64," + base64_of(plain("4")), "id": "first"},
    ]
    response = client.post("/predict", json={"images": images})
    predictions = response.json()["predictions"]
    assert [prediction["number"] for prediction in predictions] == ["1", "2", "3", "4"]
    assert [prediction["id"] for prediction in predictions] == ["first", "1", "2", "first"]


def two_numbers() -> bytes:
    """ "12" in the left half, "34" in the right."""
    image = Image.new("RGB", (40, 20), colour_of("12"))
    image.paste(colour_of("34"), (20, 0, 40, 20))
    return encode(image)


def test_regions_of_the_query_are_read_in_order(client: httpx.Client) -> None:
    response = client.post("/predict?region=20,0,20,20&region=0,0,20,20", content=two_numbers())
    predictions = response.json()["predictions"]
    assert [prediction["number"] for prediction in predictions] == ["34", "12"]
    assert [prediction["region"] for prediction in predictions] == [[20, 0, 20, 20], [0, 0, 20, 20]]
    assert [prediction["id"] for prediction in predictions] == ["0", "0"]


def test_regions_of_the_query_apply_to_each_multipart_image(client: httpx.Client) -> None:
    files = [("image", ("a.png", two_numbers())), ("image", ("b.png", plain("5", (40, 20))))]
    predictions = client.post("/predict?region=0,0,20,20&region=20.5,0,19,20", files=files).json()["predictions"]
    assert [prediction["number"] for prediction in predictions] == ["12", "34", "5", "5"]
    assert [prediction["image"]["index"] for prediction in predictions] == [0, 0, 1, 1]


def test_regions_in_json_belong_to_their_image(client: httpx.Client) -> None:
    images = [
        {"data": base64_of(two_numbers()), "id": "a", "regions": [[20, 0, 20, 20], [0, 0, 20.0, 20]]},
        {"data": base64_of(two_numbers()), "id": "b", "regions": [[0, 0, 10, 10]]},
        {"data": base64_of(plain("6")), "id": "c"},
    ]
    predictions = client.post("/predict", json={"images": images}).json()["predictions"]
    assert [(prediction["id"], prediction["number"]) for prediction in predictions] == [
        ("a", "34"),
        ("a", "12"),
        ("b", "12"),
        ("c", "6"),
    ]
    assert predictions[3]["region"] is None


def test_a_region_may_be_rounded_to_a_pixel_outside(client: httpx.Client) -> None:
    response = client.post("/predict?region=-1,-0.5,41.5,21", content=two_numbers())
    assert response.status_code == 200
    assert response.json()["predictions"][0]["region"] == [-1, -0.5, 41.5, 21]


def test_min_confidence_replaces_the_artifacts_threshold(client: httpx.Client) -> None:
    # Half way between 1 and 2: either is about as likely, and no reading is sure.
    unsure = encode(Image.new("RGB", (8, 8), (12 + 36, 252, 252)))

    def prediction(query: str) -> tuple[float, bool]:
        (answer,) = client.post("/predict" + query, content=unsure).json()["predictions"]
        return answer["confidence"], answer["accepted"]

    confidence, accepted = prediction("")
    assert 0.3 < confidence < THRESHOLD
    assert not accepted
    assert prediction("?min_confidence=0.3") == (confidence, True)
    assert prediction("?min_confidence=1") == (confidence, False)


def test_boxes_false_leaves_the_boxes_out(client: httpx.Client) -> None:
    (prediction,) = client.post("/predict?boxes=false", content=plain("1")).json()["predictions"]
    assert "boxes" not in prediction
    assert prediction["number"] == "1"
    assert prediction["region"] is None


def test_the_request_id_is_echoed_or_made(client: httpx.Client) -> None:
    assert client.post("/predict", content=plain("1"), headers={"X-Request-ID": "a-1"}).headers["x-request-id"] == "a-1"
    made = [client.post("/predict", content=plain("1")).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    assert all(made)
    hostile = client.get("/livez", headers={"X-Request-ID": "x" * 1000})
    assert len(hostile.headers["x-request-id"]) < 200


def test_one_bad_image_does_not_lose_the_others(client: httpx.Client) -> None:
    images = [
        {"data": base64_of(plain("1"))},
        {"data": "no base64!", "id": "b"},
        {"data": base64_of(plain("2")[:45])},
        {"data": base64_of(plain("3", (10, 10))), "regions": [[0, 0, 5, 5], [8, 8, 5, 5], [5, 5, 5, 5]]},
        {"data": base64_of(b"%PDF-1.7 and so on")},
    ]
    response = client.post("/predict", json={"images": images})
    assert response.status_code == 200
    predictions = response.json()["predictions"]
    assert [prediction["number"] for prediction in predictions] == ["1", None, None, "3", None, "3", None]
    assert [prediction["error"] and prediction["error"]["code"] for prediction in predictions] == [
        None,
        "bad_request",
        "bad_image",
        None,
        "bad_region",
        None,
        "unsupported_media_type",
    ]
    assert predictions[1]["id"] == "b"
    assert predictions[1]["image"] == {"index": 1, "width": None, "height": None}
    assert predictions[4]["image"] == {"index": 3, "width": 10, "height": 10}
    assert predictions[4]["region"] == [8, 8, 5, 5]
    assert "10 x 10" in predictions[4]["error"]["detail"]
    failed = predictions[4]
    assert (failed["confidence"], failed["accepted"], failed["digits"], failed["boxes"]) == (None, False, [], [])


def test_with_several_images_all_may_be_bad(client: httpx.Client) -> None:
    response = client.post("/predict", files=[("image", ("a", b"junk")), ("image", ("b", b""))])
    assert response.status_code == 200
    assert [prediction["error"]["code"] for prediction in response.json()["predictions"]] == ["bad_image"] * 2


def test_the_confidence_that_was_told_is_enough_to_be_accepted(client: httpx.Client) -> None:
    for number in ("1", "42", "407", "19", "7"):
        (told,) = client.post("/predict", content=plain(number)).json()["predictions"]
        again = client.post("/predict", content=plain(number), params={"min_confidence": told["confidence"]})
        assert again.json()["predictions"][0]["accepted"]
