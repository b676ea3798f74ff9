"""An image worker as any, but for its niceness: on a busy machine one that gives way to everybody
may be given no time for as long as a test can wait."""

from infra.images import worker

if __name__ == "__main__":
    worker.be_nice = lambda: None
    worker.main()
