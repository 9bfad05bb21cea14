"""One run of the tool: its inputs, its journal, its report, its devices."""
