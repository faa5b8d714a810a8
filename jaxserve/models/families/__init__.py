"""One file a family of models: how its config.json is translated and where its checkpoints keep their tensors."""

from jaxserve.models.families.baichuan import BAICHUAN
from jaxserve.models.families.falcon import FALCON
from jaxserve.models.families.gemma import GEMMA, GEMMA2, GEMMA3
from jaxserve.models.families.gpt2 import GPT2, GPT_BIGCODE
from jaxserve.models.families.gpt_neox import GPT_NEOX
from jaxserve.models.families.granite import GRANITE
from jaxserve.models.families.internlm import INTERNLM, INTERNLM2, INTERNLM3
from jaxserve.models.families.llama import LLAMA
from jaxserve.models.families.mistral import MISTRAL, MIXTRAL
from jaxserve.models.families.olmo2 import OLMO2
from jaxserve.models.families.phi3 import PHI3
from jaxserve.models.families.qwen import QWEN2, QWEN3, QWEN3_MOE
from jaxserve.models.families.qwen1 import QWEN1
from jaxserve.models.family import ModelFamily

FAMILIES: tuple[ModelFamily, ...] = (
    LLAMA,
    MISTRAL,
    MIXTRAL,
    BAICHUAN,
    QWEN1,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    INTERNLM,
    INTERNLM2,
    INTERNLM3,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI3,
    OLMO2,
    GRANITE,
    GPT_BIGCODE,
    FALCON,
    GPT_NEOX,
    GPT2,
)
