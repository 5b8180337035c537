# A module that holds objects of one size (needs --module advise_probe.ko).
insmod /lib/modules/advise_probe.ko size=640 count=1000
