"""`python -m launch.cluster slurm|gke|tpu_vm key=value ... -- NAME words...`: what a scheduler is given to run it."""
