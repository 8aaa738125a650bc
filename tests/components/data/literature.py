"""Small folders in the layouts of the literature's data sets, with pictures drawn on the spot."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

from tests.components.data.collections import drawn

CLASSES = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
MARKED = (60, 40, 30, 20)  # the bounding box of every bird: x, y, width, height


def name_of(number: int) -> str:
    """Name of a bird as the pickles have it."""
    kind = CLASSES[number % 2]
    return f"{kind}/{kind[4:]}_{number:04d}_{number + 700}"


def captions_of(number: int) -> list[str]:
    """The ten captions of a bird."""
    return [f"bird {number} has a beak of kind {line} and white wings" for line in range(10)]


def make_birds(folder: Path, train: int = 8, test: int = 4, protocol: int = 0) -> Path:
    """CUB-200-2011 as AttnGAN and DM-GAN read it: ``train`` and ``test`` pictures of 160 x 120, ten captions each."""
    images, boxes = [], []
    for number in range(train + test):
        file = folder / "CUB_200_2011" / "images" / f"{name_of(number)}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = drawn(number, (160, 120))
        x, y, width, height = MARKED
        picture.paste((255, 0, 0), (x, y, x + width, y + height))
        picture.save(file, quality=95)
        text = folder / "text" / f"{name_of(number)}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("\n".join(captions_of(number)) + "\n\n")
        images.append(f"{number + 1} {name_of(number)}.jpg")
        boxes.append(f"{number + 1} {' '.join(f'{value:.1f}' for value in MARKED)}")
    (folder / "CUB_200_2011" / "images.txt").write_text("\n".join(images) + "\n")
    (folder / "CUB_200_2011" / "bounding_boxes.txt").write_text("\n".join(boxes) + "\n")
    for part, numbers in (("train", range(train)), ("test", range(train, train + test))):
        (folder / part).mkdir()
        (folder / part / "filenames.pickle").write_bytes(pickle.dumps([name_of(n) for n in numbers], protocol))
        (folder / part / "class_info.pickle").write_bytes(pickle.dumps([1 + n % 2 for n in numbers], protocol))
    return folder


def make_coco(folder: Path, subsets: dict[str, int]) -> Path:
    """COCO's captions of ``{"train2014": 6, "val2014": 3}`` pictures, five each, and the pictures."""
    (folder / "annotations").mkdir(parents=True)
    number = 0
    for subset, count in subsets.items():
        images, annotations = [], []
        (folder / subset).mkdir()
        for _ in range(count):
            number += 1
            file = f"COCO_{subset}_{number:012d}.jpg"
            drawn(1000 + number, (120, 90)).save(folder / subset / file, quality=95)
            images.append({"id": number, "file_name": file, "width": 120, "height": 90, "license": 3})
            annotations += [
                {"image_id": number, "id": 100 * number + line, "caption": f"Picture {number} said in way {line}. "}
                for line in range(5)
            ]
        whole = {"info": {"year": 2014}, "images": images, "licenses": [{"id": 3}], "annotations": annotations[::-1]}
        (folder / "annotations" / f"captions_{subset}.json").write_text(json.dumps(whole))
    return folder
