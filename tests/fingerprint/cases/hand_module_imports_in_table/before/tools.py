import rates
