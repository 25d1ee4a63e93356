# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pipelines of diffusers as their users have them, of every family, with tiny random weights and tokenizers made here.

Three blocks at least, two levels of the autoencoder, and no modulation that is zero, as initialised ones are.
"""

import string
from collections.abc import Callable

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LDMPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)


LETTERS = string.ascii_lowercase + " ,."


def alive(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The model with random weights that are a function of the seed, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.normal_(0, p[0].numel() ** -0.5, generator=generator)
            elif "norm" in name and name.endswith("weight"):
                p.normal_(1, 0.1, generator=generator)
            else:
                p.normal_(0, 0.1, generator=generator)
    return model.eval()


def kl(channels: int = 3, latents: int = 4, seed: int = 1, **config) -> AutoencoderKL:
    vae = AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=latents,
        **{"scaling_factor": 0.7, **config},
    )
    return alive(vae, seed)


def clip(width: int = 16, projected: bool = False, seed: int = 2):
    vocab = {letter: i for i, letter in enumerate([*LETTERS, *(f"{x}</w>" for x in LETTERS)])}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=vocab["<|endoftext|>"],
    )
    model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    return alive(model, seed), CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def t5(width: int = 24, seed: int = 3):
    vocab = [(word, 0.0) for word in ("<pad>", "</s>", "<unk>")] + [(f"{x}", -2.0) for x in ["▁", *LETTERS]]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0)
    config = T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return alive(T5EncoderModel(config), seed), tokenizer


def gemma(width: int = 24, seed: int = 4):
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    tokenizer = GemmaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return alive(Gemma2Model(config), seed), tokenizer


def ddim(**config) -> DDIMScheduler:
    given = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1)
    return DDIMScheduler(**{**given, "set_alpha_to_one": False, **config})


def latent_unet() -> DiffusionPipeline:
    unet = UNet2DModel(
        sample_size=8,  # its pipeline draws squares
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    return LDMPipeline(kl(), alive(unet), ddim())


def latent_vq() -> DiffusionPipeline:
    pipe = latent_unet()
    vq = VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=4,
        num_vq_embeddings=32,
    )
    return LDMPipeline(alive(vq, 5), pipe.unet, pipe.scheduler)


def consistency() -> DiffusionPipeline:
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    return ConsistencyModelPipeline(alive(unet), CMStochasticIterativeScheduler())


def text_unet(**config) -> UNet2DConditionModel:
    given = dict(
        sample_size=(8, 12),
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return alive(UNet2DConditionModel(**{**given, **config}))


def stable_diffusion(**config) -> DiffusionPipeline:
    text_encoder, tokenizer = clip()
    return StableDiffusionPipeline(
        vae=kl(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=text_unet(**config),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(**config) -> DiffusionPipeline:
    text_encoder, tokenizer = clip()
    second, tokenizer_2 = clip(16, projected=True, seed=6)
    unet = text_unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
        **config,
    )
    return StableDiffusionXLPipeline(
        vae=kl(force_upcast=True),
        text_encoder=text_encoder,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=ddim(),
        add_watermarker=False,
    )


def dit() -> DiffusionPipeline:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    return DiTPipeline(alive(transformer), kl(), ddim(), id2label={0: "nothing"})


def pixart(kind: type = PixArtAlphaPipeline, sample_size: int = 8) -> DiffusionPipeline:
    text_encoder, tokenizer = t5()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        sample_size=sample_size,
        patch_size=2,
        caption_channels=24,
        cross_attention_dim=24,
        norm_elementwise_affine=False,
        use_additional_conditions=sample_size == 128,
    )
    return kind(tokenizer, text_encoder, kl(), alive(transformer), ddim())


def pixart_sigma() -> DiffusionPipeline:
    return pixart(PixArtSigmaPipeline)


def pixart_large() -> DiffusionPipeline:
    """Told the size of the images."""
    return pixart(sample_size=128)


def sana() -> DiffusionPipeline:
    text_encoder, tokenizer = gemma()
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=24,
        sample_size=32,
        patch_size=1,
        timestep_scale=0.5,
    )
    vae = AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16),
        decoder_block_out_channels=(8, 16),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41,
    )
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0, final_sigmas_type="zero"
    )
    return SanaPipeline(tokenizer, text_encoder, alive(vae, 1), alive(transformer), scheduler)


def sd3() -> DiffusionPipeline:
    first, tokenizer = clip(16, projected=True)
    second, tokenizer_2 = clip(16, projected=True, seed=6)
    third, tokenizer_3 = t5(32)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=12,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=alive(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl(shift_factor=0.06),
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer_2,
        text_encoder_3=third,
        tokenizer_3=tokenizer_3,
    )


def flux(guidance: bool = True) -> DiffusionPipeline:
    first, tokenizer = clip(16)
    second, tokenizer_2 = t5(32)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance,
    )
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=kl(shift_factor=0.1),
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer_2,
        transformer=alive(transformer),
    )
    return pipe


# Every family, with the arguments of a call that makes one image, not square where the pipeline draws such.
TEXT = {"prompt": "a face", "height": 16, "width": 24}
FAMILIES: dict[str, tuple[Callable[[], DiffusionPipeline], dict]] = {
    "latent UNet2DModel (KL)": (latent_unet, {}),
    "latent UNet2DModel (VQ)": (latent_vq, {}),
    "consistency": (consistency, {}),
    "Stable Diffusion": (stable_diffusion, TEXT),
    "SDXL": (sdxl, TEXT),
    "DiT": (dit, {"class_labels": [3]}),
    "PixArt-α": (pixart, {**TEXT, "use_resolution_binning": False}),
    "PixArt-Σ": (pixart_sigma, {**TEXT, "use_resolution_binning": False}),
    "PixArt-α 1024": (pixart_large, {**TEXT, "use_resolution_binning": False}),
    "Sana": (
        sana,
        {**TEXT, "height": 32, "width": 64, "use_resolution_binning": False, "complex_human_instruction": None},
    ),
    "SD3": (sd3, TEXT),
    "Flux": (flux, {**TEXT, "max_sequence_length": 512}),
}
