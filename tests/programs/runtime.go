// What Go's runtime asks of a kernel: goroutines on threads, channels, timers, preemption by signals, garbage collection, polled pipes,
// files, a child process, a fault that is recovered from. Prints only what is the same everywhere; the last line is PASS.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func workers() {
	jobs, results := make(chan int), make(chan int)
	var wg sync.WaitGroup
	for w := 0; w < 8; w++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range jobs {
				results <- j * j
			}
		}()
	}
	go func() {
		for i := 0; i < 500; i++ {
			jobs <- i
		}
		close(jobs)
		wg.Wait()
		close(results)
	}()
	sum := 0
	for r := range results {
		sum += r
	}
	fmt.Println("workers", sum)
}

func ring() {
	const n = 50
	first := make(chan int)
	in := first
	for i := 0; i < n; i++ {
		out := make(chan int)
		go func(in, out chan int) { out <- 1 + <-in }(in, out)
		in = out
	}
	go func() { first <- 0 }()
	fmt.Println("ring", <-in)
}

type node struct {
	left, right *node
	pad         [3]uint64
}

func tree(depth int) *node {
	if depth == 0 {
		return &node{}
	}
	return &node{left: tree(depth - 1), right: tree(depth - 1)}
}
func (n *node) count() int {
	if n.left == nil {
		return 1
	}
	return 1 + n.left.count() + n.right.count()
}

func garbage() {
	var total int64
	var wg sync.WaitGroup
	for g := 0; g < 4; g++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; i < 3; i++ {
				atomic.AddInt64(&total, int64(tree(10).count()))
			}
		}()
	}
	wg.Wait()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fmt.Println("garbage", total, m.NumGC > 0)
}

func timers() {
	start := time.Now()
	time.Sleep(20 * time.Millisecond)
	ticker := time.NewTicker(5 * time.Millisecond)
	for i := 0; i < 4; i++ {
		<-ticker.C
	}
	ticker.Stop()
	select {
	case <-time.After(10 * time.Millisecond):
	case <-make(chan int):
	}
	fmt.Println("timers", time.Since(start) >= 50*time.Millisecond)
}

func preempted() {
	// A loop without calls: the runtime stops it by a signal.
	var stop int32
	done := make(chan uint64)
	go func() {
		var n uint64
		for atomic.LoadInt32(&stop) == 0 {
			n++
		}
		done <- n
	}()
	time.Sleep(10 * time.Millisecond)
	runtime.GC()
	atomic.StoreInt32(&stop, 1)
	fmt.Println("preempted", <-done > 0)
}

func files() {
	dir, err := os.MkdirTemp("", "go")
	check(err)
	defer os.RemoveAll(dir)
	for i := 0; i < 20; i++ {
		check(os.WriteFile(fmt.Sprintf("%s/%02d", dir, i), bytes.Repeat([]byte{byte(i)}, 1000*i), 0o600))
	}
	list, err := os.ReadDir(dir)
	check(err)
	h := sha256.New()
	for _, e := range list {
		f, err := os.Open(dir + "/" + e.Name())
		check(err)
		_, err = io.Copy(h, f)
		check(err)
		f.Close()
	}
	fmt.Printf("files %d %x\n", len(list), h.Sum(nil)[:8])
}

func child() {
	if len(os.Args) > 1 && os.Args[1] == "child" {
		s := bufio.NewScanner(os.Stdin)
		for s.Scan() {
			fmt.Println("child:", strings.ToUpper(s.Text()))
		}
		os.Exit(7)
	}
}

func executes() {
	self, err := os.Executable()
	check(err)
	c := exec.Command(self, "child")
	c.Stdin = strings.NewReader("one\ntwo\n")
	out, err := c.Output()
	e, ok := err.(*exec.ExitError)
	fmt.Print(string(out))
	fmt.Println("exec", ok && e.ExitCode() == 7)
}

func signals() {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	check(syscall.Kill(os.Getpid(), syscall.SIGUSR1))
	fmt.Println("signal", <-c)
}

func recovers() {
	defer func() { fmt.Println("recovered:", recover()) }()
	var p *node
	fmt.Println(p.count())
}

func pipes() {
	r, w, err := os.Pipe()
	check(err)
	go func() {
		for i := 0; i < 200; i++ {
			fmt.Fprintf(w, "line %d\n", i)
		}
		w.Close()
	}()
	b, err := io.ReadAll(r)
	check(err)
	fmt.Printf("pipe %d %x\n", len(b), sha256.Sum256(b))
}

func maps() {
	m := map[string]int{}
	for i := 0; i < 2000; i++ {
		m[fmt.Sprint(i%777)] += i
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	fmt.Println("maps", len(keys), keys[0], m[keys[100]])
}

func check(err error) {
	if err != nil {
		fmt.Println("FAIL", err)
		os.Exit(1)
	}
}

func main() {
	child()
	for _, f := range []func(){workers, ring, garbage, timers, preempted, files, executes, signals, recovers, pipes, maps} {
		f()
	}
	fmt.Println("PASS go")
}
