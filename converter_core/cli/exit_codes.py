"""Every exit code of the command line, and what it means.

0    done, or there was nothing to do
1    failed or refused: the messages say why
2    usage error: the command line itself is wrong
3    verify: the structure is right, but there was no manifest to check the contents against
130  interrupted (Ctrl-C); the same command resumes
143  terminated (SIGTERM); the same command resumes
"""

OK = 0
FAILED = 1
USAGE = 2
STRUCTURE_ONLY = 3
INTERRUPTED = 130
TERMINATED = 143
