"""Files from the network: BOP's repositories, resumable downloads, archives. The only room that opens connections."""
