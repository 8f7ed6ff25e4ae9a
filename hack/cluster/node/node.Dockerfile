# ROOT is a Debian root with systemd and containerd; build.sh makes it.
ARG ROOT
FROM $ROOT
COPY kube /usr/bin/
COPY entrypoint /usr/local/bin/
COPY containerd.toml /etc/containerd/config.toml
COPY kubelet.service import-images.service /etc/systemd/system/
COPY default-cni.yaml default-storage.yaml /kind/manifests/
COPY images.tar version /kind/
RUN for name in kubelet kubeadm kubectl; do ln -s kube /usr/bin/$name; done && \
    systemctl enable containerd import-images kubelet && \
    systemctl disable docker-registry && \
    systemctl mask getty@tty1.service run-rpc_pipefs.mount
ENV container=docker
STOPSIGNAL SIGRTMIN+3
ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]
