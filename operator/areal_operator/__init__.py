"""The operator: GRPOExperiment objects become servers, a trainer, and a status that says what goes on."""
