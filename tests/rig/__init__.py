"""Real hosts on one machine: each a set of namespaces with its own IP, sshd and Docker Engine."""
