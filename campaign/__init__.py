"""What a campaign keeps: settings, ledger, run directory, traces, summary, and the processes it owns."""
