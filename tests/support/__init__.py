"""What the tests share: builders, the checker, the control plane and the kubelet."""
