// Says as whom it runs: the specs of cri-tools run it with a set-uid bit.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Println("Effective uid:", os.Geteuid())
}
