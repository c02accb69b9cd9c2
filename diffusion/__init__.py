"""Text-to-image policies over any diffusers pipeline: capture and replay, and one stepper a sampler."""
