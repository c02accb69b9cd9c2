"""Robots: action chunks of flow-matching policies as decisions, over ManiSkill simulation."""

import logging
import warnings

# Said by every process, and of no use: SAPIEN brings a Vulkan loader along, lerobot its second decoder of videos.
warnings.filterwarnings("ignore", "Failed to find system libvulkan")
logging.getLogger("lerobot.utils.import_utils").setLevel(logging.ERROR)
