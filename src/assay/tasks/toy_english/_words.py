"""The words of toy English, each a token, in the order of their ids.

The order is frozen: a model knows its words by number. A word can be added at the end only, and then `VERSION` rises.
"""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

VERSION = 1
"""Of the vocabulary; a checkpoint's training record says which it was trained with."""

CONTEXT = 64
"""The longest sequence."""

BOS, PAD = 0, 1


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "mary john anna tom lucy paul emma jack sara david kate mark nina oscar julia peter laura simon alice henry clara "
    "frank diana george helen martin"
)
GIVERS = _words("ruth felix vera hugo ivan")
"""Names that only ever give, in training."""
OUTSIDERS = _words("olga bruno rita edgar tina")
"""Names that in training are never in a sentence with an indirect object."""
PLACES = _words("store park school office garden station museum market beach")
THINGS = _words("ring cup pen book key ball hat lamp box coin bag clock")
PLAIN = _words("drum kite vase rope")
"""Things that never have a colour in training."""
COLOURS = _words("red blue green grey black white pink brown")
NUMBERS = tuple(f"{number:02}" for number in range(100))
SPANS = _words("war truce reign strike siege famine treaty voyage contract project drought festival")
NEW_SPANS = _words("campaign dispute regime rebellion")
"""Nouns that last only in evaluation."""
NONSENSE = _words(
    "blick dax fep gorp hib jup klem lurn mip nax olt pilk quon rast sule toma umbo vank wesk xuri yoll zeb brill crum "
    "drand flisk glone hask irp jelk kvint lomm morb neld opra plick quist rimp snerd tulv"
)
DAYS = _words("monday tuesday wednesday thursday friday saturday sunday")
MONTHS = _words("january february march april may june july august september october november december")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
COUNTS = _words(
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
ORDINALS = _words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth"
)
NOUNS = _words("dog girl pilot cat boy teacher farmer doctor king bird horse nurse sailor baker")
PLURAL_NOUNS = tuple(f"{noun}s" for noun in NOUNS)
PLURAL_VERBS = _words("run sleep sing wait smile fall jump work talk laugh")
VERBS = tuple(f"{verb}s" for verb in PLURAL_VERBS)
PLURAL_TRANSITIVES = _words("like see know")
TRANSITIVES = tuple(f"{verb}s" for verb in PLURAL_TRANSITIVES)
PREPOSITIONS = _words("near behind beside above under")
STEMS = _words(
    "rud kal vem tor sil bran dov elk fir gan hul jor kep lim mor nev ost pra ral sev tul urb vol wen yar zim bel cor "
    "dal ent"
)
RULED = _words("-ian -or -eth -uk -ash -im")
"""Suffixes that tell what their bearers are like, mostly."""
NEUTRAL = _words("-o -el")
"""Suffixes that tell nothing."""
COUNTRIES = _words("gallia teria norland ostmark veldt lusia karpia moravia rhodes islay")
FOODS = _words("rice beans fish bread cheese soup corn plums nuts cake")
INSTRUMENTS = _words("flute harp horn violin piano guitar trumpet cello organ lute")
FUNCTION_WORDS = _words(
    ". , : ? ( ) a the of to and in at on from with is are was were when after while then so later today here there it "
    "that went came gave handed passed sent showed offered met had lunch saw walked old long day table lasted year "
    "series what colour question answer def f param about comes born home eats eat food plays play music room"
)

VOCABULARY = (
    "<bos>", "<pad>", *NAMES, *GIVERS, *OUTSIDERS, *PLACES, *THINGS, *PLAIN, *COLOURS, *NUMBERS, *SPANS, *NEW_SPANS,
    *NONSENSE, *DAYS, *MONTHS, *LETTERS, *COUNTS, *ORDINALS, *NOUNS, *PLURAL_NOUNS, *VERBS, *PLURAL_VERBS,
    *TRANSITIVES, *PLURAL_TRANSITIVES, *PREPOSITIONS, *STEMS, *RULED, *NEUTRAL, *COUNTRIES, *FOODS, *INSTRUMENTS,
    *FUNCTION_WORDS,
)  # fmt: skip
"""All tokens in the order of their ids."""

ID = {word: token for token, word in enumerate(VOCABULARY)}


def tokenizer() -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer of the vocabulary: words between blanks, <bos> in front. It fails on other words."""
    backend = Tokenizer(WordLevel(ID, unk_token="<unknown>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
