"""Sampling from a background pool with weights that are learnt during training (Li & Vasconcelos 2020).

https://openaccess.thecvf.com/content_CVPR_2020/html/Li_Background_Data_Resampling_for_Outlier-Aware_Classification_CVPR_2020_paper.html
"""

from fastood.samplers.batch_sampler import BackgroundPoolSampler
from fastood.samplers.pool import BackgroundPool
from fastood.samplers.sharded import ShardedBackgroundPool
from fastood.samplers.sharded_draws import SliceDraws
from fastood.samplers.state import AscentMode

__all__ = [
    "AscentMode",
    "BackgroundPool",
    "BackgroundPoolSampler",
    "ShardedBackgroundPool",
    "SliceDraws",
]
