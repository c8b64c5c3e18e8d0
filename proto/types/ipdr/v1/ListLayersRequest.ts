// Original file: proto/ipdr/agent.proto


export interface ListLayersRequest {
}

export interface ListLayersRequest__Output {
}
