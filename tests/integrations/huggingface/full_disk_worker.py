"""Trains on a disk that has no room for a second checkpoint: full_disk_worker.py FOLDER KIND.

Prints the error and what is left, as JSON.
"""

import json
import os
import sys
from pathlib import Path

import torch
from transformers.trainer_utils import get_last_checkpoint

import pyckpt
from tests.integrations.huggingface.training import TRAINERS, make_trainer

torch.set_num_threads(1)
folder = Path(sys.argv[1])
trainer = make_trainer(TRAINERS[sys.argv[2]], folder, save_total_limit=1, hidden_size=256)
try:
    trainer.train()
    error = None
except pyckpt.CheckpointError as raised:
    error = str(raised)
trainer = make_trainer(TRAINERS["stock"], folder, save_strategy="no", hidden_size=256)
trainer.train(resume_from_checkpoint=get_last_checkpoint(folder))
print(json.dumps({"error": error, "left": sorted(os.listdir(folder))}))
