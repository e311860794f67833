"""What people, Prometheus and systemd see."""
