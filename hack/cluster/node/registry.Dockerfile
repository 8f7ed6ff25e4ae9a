ARG ROOT
FROM $ROOT
COPY registry.yaml /etc/docker/registry/config.yml
EXPOSE 5000
CMD ["docker-registry", "serve", "/etc/docker/registry/config.yml"]
