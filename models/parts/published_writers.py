"""How a published network that writes was shown texts: the marks around sources, and before what it writes."""

from typing import TYPE_CHECKING, Any

from pydantic import Field

from models.parts.options import Plain
from models.parts.published import Published, Unusable
from models.parts.published_networks import configuration, of_backbone
from models.parts.published_texts import around, is_id, tokenizer_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_GENERATION = "generation_config.json"


class Writes(Plain):
    """What a network was shown around texts, by the ids of its own tokenizer."""

    before: list[int] = Field(description="Marks before a source, and the tokens of the prefix.")
    behind: list[int] = Field(description="Marks behind a source.")
    begins: list[int] = Field(min_length=1, description="What stands before a target.")
    end: int = Field(description="Where a target is over.")
    unknown: int = Field(description="What stands for anything it has no token for.")
    padding: int = Field(description="What stands behind shorter texts, and is never written.")
    most: int | None = Field(
        description="Tokens that it has places for, marks included; null: any number."
    )


def read_writing(
    published: Published, prefix: str, source_language: str | None, target_language: str | None
) -> Writes:
    """How the checkpoint of a folder was shown texts. Raises Unusable."""
    config = configuration(of_backbone(published.config))
    told = {"src_lang": source_language, "tgt_lang": target_language}
    languages = {name: code for name, code in told.items() if code is not None}
    tokenizer = tokenizer_of(published, told=languages)
    _check_languages(tokenizer, languages)
    size = config.vocab_size
    rust = tokenizer.backend_tokenizer
    plain = rust.encode("a", add_special_tokens=False).ids
    before, behind = around(plain, tokenizer("a").input_ids)
    target = around(plain, tokenizer(text_target="a").input_ids)
    ends = (tokenizer.eos_token_id, config.eos_token_id, tokenizer.sep_token_id)
    end = next((id for id in ends if is_id(id, size)), None)
    if end is None:
        raise Unusable("it does not say which token is the end of what it writes")
    paddings = (config.pad_token_id, tokenizer.pad_token_id, end)
    padding = next(id for id in paddings if is_id(id, size))
    unknown = tokenizer.unk_token_id
    return Writes(
        before=[*before, *rust.encode(prefix, add_special_tokens=False).ids],
        behind=behind,
        begins=_begins(published, config, *target),
        end=end,
        unknown=unknown if is_id(unknown, size) else end,
        padding=padding,
        most=getattr(config, "max_position_embeddings", None),
    )


def _check_languages(tokenizer: "PreTrainedTokenizerBase", languages: dict[str, str]) -> None:
    """Raises Unusable for languages that the tokenizer does not know, or has to be told."""
    tells = hasattr(tokenizer, "src_lang")
    if tells and len(languages) < 2:
        raise Unusable("it has to be told both languages: `source_language`, `target_language`")
    if languages and not tells:
        raise Unusable("it is told no languages: leave them out")
    known = tokenizer.get_vocab()
    unknown = [code for code in languages.values() if code not in known]
    if unknown:
        raise Unusable(f"it has no language {unknown[0]}")


def _begins(
    published: Published, config: "PretrainedConfig", before: list[int], behind: list[int]
) -> list[int]:
    """What stands before a target, whose marks these are. Raises Unusable."""
    if len(behind) > 1:  # a language that is written behind the end moves to the start
        return behind[-1:]
    said: list[dict[str, Any]] = [published.config, config.to_dict()]
    if published.has(_GENERATION):
        said.append(published.read(_GENERATION))
    names = ("decoder_start_token_id", "bos_token_id")
    starts = (each.get(name) for name in names for each in said)
    start = next((id for id in starts if is_id(id, config.vocab_size)), None)
    if start is None:
        raise Unusable("it does not say by which token it begins to write")
    return [start, *before]
