"""Config keys by who reads them: per phase, of the data, unread by earlier phases; and those that change no weights."""

from __future__ import annotations

# Keys that may differ by phase, written `<phase>.<key>`: the ones a phase reads while it trains.
PHASE_KEYS = (
    "learner learning_rate weight_decay epochs stopping_step eval_step clip_grad_norm train_batch_size loss "
    "n_negatives negatives negative_sampling anchor_weight align_loss mmd_weight mmd_rows mmd_kernel mmd_bandwidths "
    "infonce_temperature gate_learning_rate weight_average enable_amp"
).split()
# Keys that change the dataset or its loaders.
DATA_KEYS = (
    "eval_args mask_history backbone train_rows train_windows n_bins bucket_by_length text_encoder text_fields "
    "text_template text_vectors_dir fast_data exact_times cold_split cold_split_seed global_time_cuts"
).split()
# Keys that no earlier phase reads, so that changing them leaves earlier phases as they are (see `checkpoint`).
FIRST_READ_IN = {
    "align": (
        "text_encoder text_fields text_template text_transform adapter_layers adapter_activation adapter_dropout "
        "adapter_init fusion fusion_activation fusion_dropout fusion_init id_dropout align_start anchor_weight "
        "align_loss mmd_weight mmd_rows mmd_kernel mmd_bandwidths infonce_temperature"
    ).split(),
    "finetune": (
        "experts n_bins gate_form gate_norm gate_start gate_users gate_learning_rate gate_fit gate_cold_weight "
        "match_decay match_metric repeat_term markov_decay expert_loss retrain_experts"
    ).split(),
}
FOLDER_KEYS = ("data_path", "checkpoint_dir", "text_vectors_dir", "phase_cache", "init_checkpoint")
# Keys that say where a run finds things, not what it is.
PLACES = frozenset({"data_path", "text_vectors_dir", "phase_cache", "gpu_id"})
# Keys that say where and how a run happens, but not which weights it ends with. One process among others; where things
# lie; on what machine; what is said and kept; how fast and in how much memory.
PROCESS_KEYS = ("nproc", "world_size", "ip", "port", "offset", "group_offset", "local_rank")
_FOLDERS = "checkpoint_dir dataset_save_path dataloaders_save_path"
_MACHINE = "use_gpu worker device"
_TALK = "state show_progress verbose log_wandb wandb_project loss_decimal_place save_dataset save_dataloaders"
_SPEED = "score_memory_mb text_memory_mb fast_data fast_evaluation diagnostics"
WITHOUT_EFFECT = PLACES | frozenset((*PROCESS_KEYS, *f"{_FOLDERS} {_MACHINE} {_TALK} {_SPEED}".split()))
