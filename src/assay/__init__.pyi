from . import engine as engine
from . import faithfulness as faithfulness
from . import proofs as proofs
from . import reports as reports
from . import simplify as simplify
from . import subjects as subjects
from . import tasks as tasks
from . import testing as testing
from ._errors import AssayError as AssayError
from .faithfulness import Comparison as Comparison
from .faithfulness import Verdict as Verdict
from .faithfulness import Workers as Workers
from .faithfulness import compare as compare
from .proofs import Certificate as Certificate
from .proofs import certify as certify
from .simplify import SVD as SVD
from .simplify import Identity as Identity
from .simplify import KMeans as KMeans
from .simplify import MeanAblation as MeanAblation
from .simplify import OneHotAttention as OneHotAttention
from .simplify import RandomPerturbation as RandomPerturbation
from .simplify import RandomProjection as RandomProjection
from .simplify import UniformAttention as UniformAttention
from .subjects import Subject as Subject
from .subjects import load as load

__version__: str
