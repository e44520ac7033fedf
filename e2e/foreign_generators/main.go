// Reads an order with the client that oapi-codegen makes of the description of the order service.
// `client URL ID` prints it as JSON.
package main

import (
	"context"
	"encoding/json"
	"os"

	"example.org/client/api"
	"github.com/google/uuid"
)

func main() {
	client, err := api.NewClientWithResponses(os.Args[1])
	check(err)
	answer, err := client.ShowOrderWithResponse(context.Background(), uuid.MustParse(os.Args[2]), nil)
	check(err)
	check(json.NewEncoder(os.Stdout).Encode(answer.JSON200))
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
