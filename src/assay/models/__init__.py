"""Other models as proxies: what is put in the place of a subject as a whole."""

from assay.models._breaks import Breaks, breaks
from assay.models._other import OtherModel

__all__ = ["Breaks", "OtherModel", "breaks"]
