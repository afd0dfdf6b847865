"""All settings as one value: a field is its key in lower case."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from vllmdeploy.config.fleet import image_key
from vllmdeploy.config.keys.api import Downloads, Gateway
from vllmdeploy.config.keys.hosts import Containers, Hosts
from vllmdeploy.config.keys.network import RayCluster
from vllmdeploy.config.keys.seeds import Clients, Deployment, Engine, SharedCards
from vllmdeploy.config.keys.types import Image, Section

SECTIONS: tuple[type[Section], ...] = (
    *(Deployment, Engine, SharedCards, Clients),
    *(Hosts, Containers, RayCluster, Gateway, Downloads),
)
KEYS: tuple[str, ...] = tuple(name.upper() for section in SECTIONS for name in section.model_fields)


class Settings(
    Downloads, Gateway, RayCluster, Containers, Hosts, Clients, SharedCards, Engine, Deployment
):
    """A key that is not set and takes the profile of the command that uses it is None."""

    images: Mapping[str, Image] = Field(default_factory=dict[str, str])
    """The images of groups, by the end of their key IMAGE_<GROUP>."""

    def image_for(self, group: str) -> str | None:
        """The image of a group; None means the accelerator's usual one."""
        return self.images.get(image_key(group), self.image)
