"""What `mtunnel check` looks at: each module takes one subject and gives findings. Nothing is changed by any of it."""
