# The cluster's components: one image under all the names that kubeadm asks for, and the pause container.
ARG ROOT
FROM $ROOT
COPY kube local-path-provisioner pod-network /usr/local/bin/
RUN for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy etcd kubectl; do \
      ln -s kube /usr/local/bin/$name; done
CMD ["sleep", "infinity"]
