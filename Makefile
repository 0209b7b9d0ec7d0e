# Every goal sets up what it needs, in a bare Debian 12 or 13 tree too: as root it installs missing packages, else it
# names them. Python packages go into .venv.

PYTHON = .venv/bin/python
TESTS = tests
FUZZ_SECONDS = 60
FUZZ_TARGETS =
SOAK_SECONDS = 600
RELAY_GIB =
CUTS =
MIB_S = 0
MINUTES = 0
LIVE = 50
QUICK =
JOBS = 2
CELLS =
DOCS =
SUITES =

help:
	@echo 'make demo    send a virtual machine from one node to another, both made for it'
	@echo 'make test    all tests, or some of them: make test TESTS=tests.wire'
	@echo 'make lint    style and types'
	@echo 'make fuzz    what reads foreign bytes, led by coverage: make fuzz FUZZ_SECONDS=60 FUZZ_TARGETS=lines'
	@echo 'make soak    good and hostile traffic against one daemon: make soak SOAK_SECONDS=600'
	@echo '             then a running VM goes to and fro between two nodes: make soak SOAK_SECONDS= LIVE=50'
	@echo '             or so much through the relay, in mixed streams: make soak RELAY_GIB=200'
	@echo '             or through flows that lose a connection every 2 s: make soak RELAY_GIB=100 CUTS=2 MIB_S=8 MINUTES=110'
	@echo '             OUTAGE_S=120 takes the network away once, when OUTAGE_AT=0.5 of it is done'
	@echo 'make trim    a Linux guest gives back what its file system does not use (fetches 28 MB)'
	@echo 'make guests  a whole Debian with UEFI and a TPM moves while it runs (as root; fetches 300 MB, takes minutes)'
	@echo 'make matrix  every failure in every phase of a running VM on its way; writes docs/matrix.md'
	@echo '             black holes of a minute instead of 20 s, and these only: make matrix MATRIX_HOLE_S=60 CELLS=black'
	@echo 'make page    the status page in Chromium, which it installs; make page DOCS=1 writes the pictures in docs/'
	@echo 'make metrics a real Prometheus, which it installs, asks what the dashboard and the alerts ask, while a VM comes'
	@echo 'make attack  processes that stand still and files that are changed in the middle of a move; CELLS=memory is one phase'
	@echo 'make bench   what the relay costs, beside others; make bench QUICK=1 takes a minute, DOCS=1 writes docs/, README.md'
	@echo 'make fresh   demo and tests in bare Debian 12 and 13 trees (as root)'
	@echo 'make deb     Debian packages for 13 and 12 in dist/, built and tried in bare trees (as root; make deb SUITES=trixie)'
	@echo 'make booted  the service on a Debian 13 that systemd boots, in namespaces (as root)'
	@echo 'make clean   remove what the goals made'

demo:
	@tools/set-up demo
	$(PYTHON) -m mtunnel_tx.cli demo

test:
	@tools/set-up test
	tools/run-tests $(TESTS)

lint: ready
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy --strict

fuzz: ready
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(PYTHON) -m tests.fuzz.guided $(FUZZ_SECONDS) .fuzz $(FUZZ_TARGETS)

soak: ready
ifneq ($(CUTS),)
	$(PYTHON) -m tests.soak.cuts $(or $(RELAY_GIB),100) $(CUTS) $(if $(MIB_S),--mib-s $(MIB_S)) \
		$(if $(MINUTES),--minutes $(MINUTES)) $(if $(OUTAGE_S),--outage-s $(OUTAGE_S)) \
		$(if $(OUTAGE_AT),--outage-at $(OUTAGE_AT)) $(if $(SEED),--seed $(SEED))
else ifneq ($(RELAY_GIB),)
	$(PYTHON) -m tests.soak.relay $(RELAY_GIB)
else
	$(if $(SOAK_SECONDS),$(PYTHON) -m tests.soak $(SOAK_SECONDS))
	$(if $(LIVE),$(PYTHON) -m tests.soak.live $(LIVE))
endif

trim:
	@tools/set-up test
	@tools/fetch-linux
	tools/run-tests tests.trim.real

guests:
	@tools/set-up test
	@tools/make-guest-image
	MTUNNEL_TEST_PATIENCE=$${MTUNNEL_TEST_PATIENCE:-8} tools/run-tests tests.debian.real

page:
	@tools/set-up browser
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[browser]'
	DOCS=$(DOCS) tools/run-tests tests.browser.real

metrics:
	@tools/set-up test
	@tools/set-up metrics
	tools/run-tests tests.test_monitoring tests.watch.test_metrics tests.whole.test_prometheus

matrix:
	@tools/set-up test
	$(if $(MATRIX_HOLE_S),MATRIX_HOLE_S=$(MATRIX_HOLE_S)) $(PYTHON) -m tests.matrix --jobs $(JOBS) --cells '$(CELLS)' $(if $(CELLS),,--page docs/matrix.md)

attack:
	@tools/set-up test
	$(PYTHON) -m tests.attack --cells '$(CELLS)'

bench: ready
	@bench/set-up
	$(PYTHON) -m bench $(if $(QUICK),--quick) $(if $(DOCS),--docs)

fresh:
	tools/run-fresh

deb:
	tools/make-deb $(SUITES)

booted:
	tools/run-booted

ready:
	@tools/set-up

clean:
	rm -rf .venv build dist *.egg-info _trial_temp* .coverage* .mypy_cache .ruff_cache .hypothesis .fuzz .trim .guests
	rm -f mtunnel_tx/stream/*.so

.PHONY: help demo test lint fuzz soak trim guests page metrics matrix attack bench fresh deb booted ready clean
