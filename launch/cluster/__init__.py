"""Writes scripts and manifests for clusters: SLURM, GKE JobSets, Cloud TPU VMs."""
