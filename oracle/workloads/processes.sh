# Short-lived processes: fork, exec and exit allocate and free page tables, kernel stacks (silent bulk pages) and user pages.
for i in $(seq 1 60); do
  sh -c 'sh -c "true; echo $$" | cat' > /dev/null
  (sh -c 'echo one'; sh -c 'echo two') | sort | md5sum > /dev/null
done
for i in $(seq 1 12); do (sleep 0.2; true) & done
wait
