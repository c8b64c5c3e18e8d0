// Original file: proto/ipdr/agent.proto


export interface ListImagesRequest {
}

export interface ListImagesRequest__Output {
}
