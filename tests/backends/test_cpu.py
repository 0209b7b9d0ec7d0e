"""Processors: QEMU's models and flags for Proxmox's, their number and their places."""

import json
from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from mtunnel_tx.backends.cpu import check_cpu, cpu_argument
from mtunnel_tx.errors import TunnelError
from tests.backends.test_cmdline import HOST, line, option, setup


class Processors(SynchronousTestCase):
    def cpu(self, text, *, kvm, **more):
        return cpu_argument(setup(text).hardware, replace(HOST, has_kvm=kvm), **more)

    def test_models(self):
        for text, emulated, real in (
            ("", "kvm64,+lahf_lm,+sep", "kvm64,+lahf_lm,+sep,+kvm_pv_unhalt,+kvm_pv_eoi,enforce"),
            ("kvm: 0\n", "qemu64", "qemu64"),
            ("cpu: host\n", "max", "host,+kvm_pv_unhalt,+kvm_pv_eoi"),
            (
                "cpu: qemu64,flags=+aes;-pcid\n",
                "qemu64,+aes,-pcid",
                "qemu64,+kvm_pv_unhalt,+kvm_pv_eoi,+aes,-pcid,enforce",
            ),
        ):
            self.assertEqual(self.cpu(text, kvm=False), emulated)
            self.assertEqual(self.cpu(text, kvm=True), real)

    def test_proxmox_levels(self):
        words = self.cpu("cpu: x86-64-v2-AES,flags=-aes\n", kvm=False).split(",")
        self.assertEqual(words[0], "qemu64")
        self.assertEqual(set(words[1:]), {"+pni", "+popcnt", "+sse4.1", "+sse4.2", "+ssse3", "-aes"})

    def test_windows(self):
        text = self.cpu("ostype: win10\n", kvm=True)
        self.assertIn("hv_relaxed", text)
        self.assertNotIn("hv_", self.cpu("ostype: win10\n", kvm=False))
        argv = line("ostype: win10\n")
        self.assertEqual(option(argv, "-rtc"), ["driftfix=slew,base=localtime"])
        self.assertIn("hpet=off", option(argv, "-machine")[0])

    def test_what_the_source_says(self):
        sent = "host,+kvm_pv_eoi,enforce,-vmx"
        self.assertEqual(self.cpu("", kvm=True, told=sent), sent)
        self.assertEqual(self.cpu("", kvm=False, told=sent), "max,-vmx")

    def check(self, text):
        check_cpu(setup(text).hardware, HOST)

    def test_known_ones(self):
        for text in ("", "cpu: host\n", "cpu: max,flags=+aes;-sse4.1\n", "cpu: kvm64,flags=+hv-evmcs;-lahf_lm\n"):
            self.check(text)

    def test_unknown_ones(self):
        for text, reason in (
            ("cpu: Pentium9\n", "CPU model 'Pentium9'"),
            ("cpu: kvm64,flags=+aes;+warp\n", "CPU flag 'warp'"),
            ("cpu: x86-64-v2\n", "CPU flag 'pni'"),
            ("cpu: qemu64,guest-phys-bits=40\n", "guest-phys-bits"),
        ):
            with self.assertRaises(TunnelError) as caught:
                check_cpu(setup(text).hardware, replace(HOST, machines=frozenset({"pc-i440fx-7.2"})))
            self.assertEqual(caught.exception.text, f"cpu: this QEMU has no {reason}")

    def test_guests_of_guests(self):
        self.assertEqual(self.cpu("cpu: qemu64,flags=+nested-virt\n", kvm=False), "qemu64,+svm")

    def test_numa(self):
        argv = line("numa: 1\nsockets: 2\ncores: 2\nmemory: 1024\n")
        self.assertEqual(
            option(argv, "-numa"),
            ["node,nodeid=0,cpus=0-1,memdev=ram-node0", "node,nodeid=1,cpus=2-3,memdev=ram-node1"],
        )
        named = line("numa: 1\ncores: 2\nmemory: 64\nnuma0: cpus=0;1,memory=64,hostnodes=0-1,policy=bind\n")
        self.assertEqual(option(named, "-numa"), ["node,nodeid=0,cpus=0,cpus=1,memdev=ram-node0"])
        self.assertEqual(json.loads(option(named, "-object")[0])["host-nodes"], [0, 1])

    def test_numa_that_does_not_add_up(self):
        for text in ("cpus=0,memory=65", "cpus=0", "cpus=0-1,memory=64", "cpus=1-0,memory=64", "cpus=0;0,memory=64"):
            with self.assertRaises(TunnelError) as caught:
                line(f"numa: 1\nmemory: 64\nnuma0: {text}\n")
            self.assertIn("numa0: ", caught.exception.text)

    def test_a_processor_in_two_nodes(self):
        with self.assertRaises(TunnelError) as caught:
            line("numa: 1\ncores: 2\nmemory: 64\nnuma0: cpus=0-1,memory=32\nnuma1: cpus=0,memory=32\n")
        self.assertEqual(caught.exception.text, "numa1: cpus=0: a processor has one node")
