"""The operator: reconciles GRPOExperiment objects into servers, a trainer and a status."""
