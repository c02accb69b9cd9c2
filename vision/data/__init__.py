"""Sources of labelled pictures and how they are divided."""

from vision.data.base import Example, Source, Split
from vision.data.charts import TableCharts
from vision.data.digits import Digits
from vision.data.drawings import EmojiShapes
from vision.data.elpv import ELPV
from vision.data.folder import HubDataset, ImageFolder
from vision.data.jsonl import JSONL
from vision.data.judged import BothOrders, JudgedDigits
from vision.data.mixed import FewShotOfEach, Mixed
from vision.data.openmoji import OpenMoji
from vision.data.pages import BlockPages
from vision.data.placed import Placed
from vision.data.protocols import BaseToNew, CrossDataset, FewPairs, FewShot, HeldOutFile, Protocol

__all__ = [
    "ELPV",
    "JSONL",
    "BaseToNew",
    "BlockPages",
    "BothOrders",
    "CrossDataset",
    "Digits",
    "EmojiShapes",
    "Example",
    "FewPairs",
    "FewShot",
    "FewShotOfEach",
    "HeldOutFile",
    "HubDataset",
    "ImageFolder",
    "JudgedDigits",
    "Mixed",
    "OpenMoji",
    "Placed",
    "Protocol",
    "Source",
    "Split",
    "TableCharts",
]
