"""LoRA adapters on our pipelines, with the calls of diffusers' own pipelines.

A pipeline class lists the one component that takes adapters:

    class MyPipeline(LoraLoaderMixin, DiffusionPipeline):
        _lora_loadable_modules = ["transformer"]

and has `load_lora_weights`, `save_lora_weights`, `fuse_lora`, `unfuse_lora`, `set_adapters`, `unload_lora_weights`
and so on. Adapters are files `pytorch_lora_weights.safetensors` with the peft configuration (rank, alpha, targets) in
the header.
"""

from __future__ import annotations

from pathlib import Path

from diffusers.loaders.lora_base import LoraBaseMixin, _fetch_state_dict

from .channels import check_channels
from .hub_names import could_be_on_the_hub

CHANNELS_KEY = "condition_channels"  # in an adapter's metadata, beside what peft writes there


class LoraLoaderMixin(LoraBaseMixin):
    """Load, save and fuse adapters of the component named in `_lora_loadable_modules`. Put it before the pipeline."""

    _lora_loadable_modules: list[str] = []
    _adapter_channels: dict[str, list[str] | None] = {}  # of every adapter loaded so far; None: those of its base
    _base_channels: list[str] | None = None  # while an adapter that sees others is fused

    @property
    def active_adapters(self) -> list[str]:
        """Names of the adapters that change what the model says now."""
        model = getattr(self, self._lora_loadable_modules[0])
        if not getattr(model, "peft_config", None) or _adapters_are_off(model):
            return []
        return model.active_adapters()

    @property
    def condition_channels(self) -> list[str]:
        """What the model sees of a scene: the channels of its configuration, or those that the active adapter was
        trained with in their place."""
        model = getattr(self, self._lora_loadable_modules[0])
        active = self.active_adapters
        if not active:
            return list(model.config.condition_channels)
        wanted = {tuple(self._adapter_channels.get(name) or model.config.condition_channels) for name in active}
        if len(wanted) > 1:
            raise ValueError(
                f"the active adapters {', '.join(active)} see different channels of a scene: use them one at a time"
            )
        return list(wanted.pop())

    @classmethod
    def lora_state_dict(cls, pretrained_model_name_or_path_or_dict, return_lora_metadata: bool = False, **kwargs):
        """Read an adapter file from a folder, a Hub repository or a dictionary; safetensors only.

        Keyword arguments are those of diffusers: `weight_name`, `subfolder`, `revision`, `cache_dir`,
        `force_download`, `local_files_only`, `token`, `proxies`.
        """
        names = ("weight_name", "subfolder", "revision", "cache_dir", "force_download", "local_files_only", "token")
        check_source(pretrained_model_name_or_path_or_dict)
        options = {name: kwargs.pop(name, None) for name in (*names, "proxies")}
        kwargs.pop("use_safetensors", None)
        if kwargs:
            raise TypeError(f"unknown arguments for a LoRA file: {', '.join(kwargs)}")
        state_dict, metadata = _fetch_state_dict(
            pretrained_model_name_or_path_or_dict,
            use_safetensors=True,
            allow_pickle=False,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            **options,
        )
        return (state_dict, metadata) if return_lora_metadata else state_dict

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict,
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = False,
        **kwargs,
    ) -> None:
        """Add an adapter to the pipeline; it is active at once. Several may be loaded, see `set_adapters`."""
        state_dict, metadata = self.lora_state_dict(
            pretrained_model_name_or_path_or_dict, return_lora_metadata=True, **kwargs
        )
        module_name = self._lora_loadable_modules[0]
        module = getattr(self, module_name)
        state_dict, metadata = _with_prefix(dict(state_dict), metadata, module_name)
        channels = None
        if metadata is not None:
            metadata = dict(metadata)
            channels = metadata.pop(f"{module_name}.{CHANNELS_KEY}", None)
            check_channels(channels or [])
        # a missing layer is only a warning in diffusers, and the adapter would then do nothing
        layers = {name for name, _ in module.named_modules()}
        layers |= {name.replace(".base_layer", "") for name in layers}
        unknown = sorted({k.removeprefix(module_name + ".").split(".lora_")[0] for k in state_dict} - layers)
        if unknown:
            raise ValueError(
                f"the adapter is for another model: {type(module).__name__} has no layer {unknown[0]} "
                f"({len(unknown)} of the adapter's layers are not there)"
            )
        _check_classes(module, state_dict, module_name)
        module.load_lora_adapter(
            state_dict,
            prefix=module_name,
            adapter_name=adapter_name,
            metadata=metadata,
            hotswap=hotswap,
            low_cpu_mem_usage=low_cpu_mem_usage,
            _pipeline=self,
        )
        name = adapter_name or module.active_adapters()[-1]
        self._adapter_channels = {**self._adapter_channels, name: channels}

    @classmethod
    def save_lora_weights(cls, save_directory, weight_name: str | None = None, is_main_process: bool = True, **kwargs):
        """Write an adapter to a folder.

        For a component called `unet` the layers are given as `unet_lora_layers` (from
        `peft.get_peft_model_state_dict(unet)`) and the configuration as `unet_lora_adapter_metadata`
        (`unet.peft_config["default"].to_dict()`); without the latter a reader has to guess rank and alpha.
        `adapter_of(unet)` makes both.
        """
        module_name = cls._lora_loadable_modules[0]
        layers = kwargs.pop(f"{module_name}_lora_layers", None)
        metadata = kwargs.pop(f"{module_name}_lora_adapter_metadata", None)
        kwargs.pop("safe_serialization", None)
        if kwargs or not layers:
            raise ValueError(
                f"save_lora_weights of {cls.__name__} needs {module_name}_lora_layers (and takes "
                f"{module_name}_lora_adapter_metadata), given: {', '.join(kwargs) or 'nothing'}"
            )
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers={module_name: layers},
            lora_metadata={module_name: metadata},
            is_main_process=is_main_process,
            weight_name=weight_name,
        )

    def fuse_lora(self, components=None, lora_scale=1.0, safe_fusing=False, adapter_names=None, **kwargs):
        """Add the active adapters to the weights: no cost at inference. `unfuse_lora` takes them out again."""
        if any(self._adapter_channels.values()):
            model = getattr(self, self._lora_loadable_modules[0])
            self._base_channels = list(model.config.condition_channels)
            model.register_to_config(condition_channels=self.condition_channels)
        super().fuse_lora(
            components=components or self._lora_loadable_modules,
            lora_scale=lora_scale,
            safe_fusing=safe_fusing,
            adapter_names=adapter_names,
            **kwargs,
        )

    def unfuse_lora(self, components=None, **kwargs):
        """Undo `fuse_lora`."""
        if self._base_channels is not None:
            getattr(self, self._lora_loadable_modules[0]).register_to_config(condition_channels=self._base_channels)
            self._base_channels = None
        super().unfuse_lora(components=components or self._lora_loadable_modules, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save the pipeline. Adapters must be gone or fused before: they are saved by `save_lora_weights`."""
        for name in self._lora_loadable_modules:
            if getattr(getattr(self, name, None), "peft_config", None):
                raise ValueError(
                    f"{name} still carries LoRA adapters, and a pipeline saved with them cannot be loaded: call "
                    "unload_lora_weights() first, after fuse_lora() if the adapters are to stay"
                )
        return super().save_pretrained(save_directory, *args, **kwargs)


def check_source(where) -> None:
    """Fail in one line where an adapter's name can be neither a file or folder here nor a Hub id."""
    if isinstance(where, (str, Path)) and not Path(where).exists() and not could_be_on_the_hub(where):
        raise OSError(
            f"{where}: no such adapter; expected a folder that save_lora_weights wrote, its file, or a Hub id"
        )


def find_adapter(name: str) -> str:
    """The folder or Hub id that a command line means: `ray_traced` is the adapter in the package."""
    from . import RAY_TRACED_ADAPTER

    return RAY_TRACED_ADAPTER if name == "ray_traced" else name


def adapter_of(
    model, module_name: str, adapter_name: str = "default", condition_channels: list[str] | None = None
) -> dict:
    """An adapter as arguments of `save_lora_weights`: `Pipe.save_lora_weights(folder, **adapter_of(unet, "unet"))`.

    `condition_channels`: what it was trained to see, where that is not what its model sees.
    """
    from peft import get_peft_model_state_dict

    if adapter_name not in getattr(model, "peft_config", {}):
        raise ValueError(f"the model has no adapter {adapter_name!r}: {list(getattr(model, 'peft_config', {}))}")
    metadata = model.peft_config[adapter_name].to_dict()
    if condition_channels is not None:
        metadata[CHANNELS_KEY] = list(condition_channels)
    return {
        f"{module_name}_lora_layers": get_peft_model_state_dict(model, adapter_name=adapter_name),
        f"{module_name}_lora_adapter_metadata": metadata,
    }


def _adapters_are_off(model) -> bool:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    return bool(layers) and all(layer.disable_adapters for layer in layers)


def _check_classes(module, state_dict: dict, module_name: str) -> None:
    """An adapter of a table of classes has a column for each of its rows."""
    for key, tensor in state_dict.items():
        if key.endswith(".lora_embedding_A"):
            table = module.get_submodule(key.removeprefix(module_name + ".").removesuffix(".lora_embedding_A"))
            if tensor.shape[1] != table.num_embeddings:
                wanted, there = tensor.shape[1] - 1, table.num_embeddings - 1  # less the null class
                raise ValueError(
                    f"the adapter was trained with {wanted} classes and the model has {there}: call "
                    f"pipe.{module_name}.set_num_classes({wanted}) before load_lora_weights"
                )


def _with_prefix(state_dict: dict, metadata: dict | None, module_name: str):
    """Bring the keys of the known file formats to `<module>.<layer>.lora_A.weight`."""
    if not state_dict or not all(".lora_" in key for key in state_dict):
        raise ValueError("not a LoRA file: every entry must belong to a lora_A or lora_B (or lora_magnitude_vector)")
    if all(key.startswith("base_model.model.") for key in state_dict):
        raise ValueError(
            "this adapter was saved by peft, which keeps its scale (lora_alpha) in another file: save it with "
            f"save_lora_weights instead, or load it with {module_name}.load_lora_adapter and its metadata"
        )
    if all(key.startswith(module_name + ".") for key in state_dict):
        return state_dict, metadata
    # written by `model.save_lora_adapter`, which knows no pipeline
    state_dict = {f"{module_name}.{key}": value for key, value in state_dict.items()}
    if metadata is not None:
        metadata = {f"{module_name}.{key}": value for key, value in metadata.items()}
    return state_dict, metadata
