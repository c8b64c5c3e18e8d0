// The stargz-snapshotter of the containerd project as a daemon, for tests of what others make of our images, and its writer of eStargz
// for tests of what we make of theirs: their own commands are modules that the module proxy does not have, the libraries it has.
//
//	stargz-snapshotter serve SOCKET ROOT CONFIG
//	stargz-snapshotter convert TAR BLOB
//
// CONFIG is a file with the JSON of its service.Config; it serves until it is told to end by SIGTERM, and logs at the level of debugging
// if it is to log which files are read. convert writes the tar, which may be compressed, as eStargz, with the files named on standard
// input, a line each, in front of the landmark as far as it has them, and prints {"tocDigest", "diffId", "tarSize"}.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/log"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/service"
	"google.golang.org/grpc"
)

func main() {
	args := os.Args[1:]
	var err error
	switch {
	case len(args) == 4 && args[0] == "serve":
		err = serve(args[1], args[2], args[3])
	case len(args) == 3 && args[0] == "convert":
		err = convert(args[1], args[2], os.Stdin)
	default:
		fmt.Fprintln(os.Stderr, "usage: stargz-snapshotter serve SOCKET ROOT CONFIG\n       stargz-snapshotter convert TAR BLOB")
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func convert(tarPath, blobPath string, firstLines io.Reader) error {
	var first, missed []string
	lines := bufio.NewScanner(firstLines)
	for lines.Scan() {
		first = append(first, lines.Text())
	}
	if err := lines.Err(); err != nil {
		return err
	}
	tar, err := os.Open(tarPath)
	if err != nil {
		return err
	}
	defer tar.Close()
	info, err := tar.Stat()
	if err != nil {
		return err
	}
	blob, err := estargz.Build(io.NewSectionReader(tar, 0, info.Size()),
		estargz.WithPrioritizedFiles(first), estargz.WithAllowPrioritizeNotFound(&missed))
	if err != nil {
		return err
	}
	defer blob.Close()
	out, err := os.Create(blobPath)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, blob); err != nil {
		return err
	}
	tarSize, err := blob.UncompressedSize()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"tocDigest": blob.TOCDigest(),
		"diffId":    blob.DiffID(),
		"tarSize":   tarSize,
	})
}

func serve(socket, root, configPath string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	text, err := os.ReadFile(configPath)
	if err != nil {
		return err
	}
	var config service.Config
	if err := json.Unmarshal(text, &config); err != nil {
		return fmt.Errorf("%s: %w", configPath, err)
	}
	if config.LogFileAccess {
		if err := log.SetLevel("debug"); err != nil {
			return err
		}
	}
	snapshotter, err := service.NewStargzSnapshotterService(ctx, root, &config)
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	go func() {
		<-ctx.Done()
		server.GracefulStop()
	}()
	fmt.Println("serving")
	if err := server.Serve(listener); err != nil {
		return err
	}
	// Unmounts what it mounted.
	return snapshotter.Close()
}
